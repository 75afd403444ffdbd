//! Finds the ONNX file in a folder as exporters and model hubs leave it.

use std::path::{Path, PathBuf};

use crate::Error;

/// Where the decoder usually is, the first one that there is; merged decoders are never taken.
const USUAL: [&str; 4] = ["model.onnx", "decoder_model.onnx", "onnx/model.onnx", "onnx/decoder_model.onnx"];

/// What optimum calls a file with two decoders in it, of which an input chooses one.
const MERGED: &str = "decoder_model_merged.onnx";

/// The ONNX file that a path means: itself unless it is a folder, else the usual one in it, or the only one.
///
/// # Errors
/// Fails where a folder holds no model or several of which none is the usual one.
pub fn model_file(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(usual) = USUAL.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(usual);
    }
    let (mut found, mut merged) = (Vec::new(), None);
    for folder in [path.to_owned(), path.join("onnx")] {
        if !folder.is_dir() {
            continue;
        }
        let unreadable = |source| Error::Read { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            if !file.is_file() || file.extension().is_none_or(|extension| extension != "onnx") {
                continue;
            }
            if file.file_name().is_some_and(|name| name == MERGED) {
                merged = Some(file);
            } else {
                found.push(file);
            }
        }
    }
    found.sort();
    let message = match (found.as_slice(), merged) {
        ([only], _) => return Ok(only.clone()),
        ([], Some(merged)) => format!(
            "there is only {}, which holds two decoders; export without merging (optimum: --no-post-process) and name \
             decoder_model.onnx",
            merged.display()
        ),
        ([], None) => "there is no .onnx file in it, nor in its folder onnx".to_owned(),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
            format!("there are several models in it; name one of {}", names.join(", "))
        }
    };
    Err(Error::ModelFolder { path: path.to_owned(), message })
}

/// The model's name: the folder it lies in, past the folders that exporters make.
pub fn model_name(path: &Path) -> String {
    let generic =
        |name: &str| name == "onnx" || name == "optimum" || name.starts_with("genai") || name.starts_with("dynamo");
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors()
        .skip(1)
        .filter_map(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| !generic(name))
        .or_else(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn the_usual_file_is_found_in_a_folder() {
        for (files, expected) in [
            (&["model.onnx", "model_q4.onnx"][..], "model.onnx"),
            (
                &["decoder_model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx"],
                "decoder_model.onnx",
            ),
            (&["config.json", "onnx/model.onnx", "onnx/model_fp16.onnx"], "onnx/model.onnx"),
            (&["llama.onnx", "llama.onnx.data"], "llama.onnx"),
            (&["onnx/llama.onnx", "onnx/decoder_model_merged.onnx"], "onnx/llama.onnx"),
        ] {
            let folder = folder(files);
            assert_eq!(model_file(folder.path()).unwrap(), folder.path().join(expected), "{files:?}");
        }
        let missing = Path::new("no/such/model.onnx");
        assert_eq!(model_file(missing).unwrap(), missing);
    }

    #[test]
    fn a_folder_without_one_model_is_refused() {
        for (files, expected) in [
            (&["config.json"][..], "no .onnx file"),
            (&["decoder_model_merged.onnx"], "--no-post-process"),
            (&["a.onnx", "b.onnx"], "b.onnx"),
            (&["a.onnx", "onnx/b.onnx"], "several"),
        ] {
            let error = model_file(folder(files).path()).unwrap_err();
            assert_eq!(error.code(), "C0104");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn names_pass_the_folders_of_exporters() {
        for (path, name) in
            [("/m/tiny/onnx/optimum/model.onnx", "tiny"), ("/tiny/model.onnx", "tiny"), ("/model.onnx", "model")]
        {
            assert_eq!(model_name(Path::new(path)), name);
        }
        let own = std::env::current_dir().unwrap();
        assert_eq!(model_name(Path::new("model.onnx")), own.file_name().unwrap().to_string_lossy());
    }
}
