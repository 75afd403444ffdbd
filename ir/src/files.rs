//! Files that are written whole or not at all, and whether they can be.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::text::format_bytes;

/// The folder that a path names a file in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name of this process alone for what is written ahead of a file.
fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    target.with_file_name(name)
}

/// The absolute path of a file, whether it exists or not; `None` if its folder does not.
fn place(path: &Path) -> Option<PathBuf> {
    let new = || Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(new)
}

/// Whether two paths name one file, whether it exists or not.
pub fn is_same(a: &Path, b: &Path) -> bool {
    place(a).is_some_and(|a| place(b) == Some(a))
}

/// Whether a device or a pipe is at this path: what can be written to, and not replaced.
pub fn is_stream(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Fails where a device or a pipe would be replaced by a file.
fn check_replaceable(path: &Path) -> io::Result<()> {
    if is_stream(path) {
        let message = "it is no file but a device or a pipe, which a file would replace; choose another name";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    Ok(())
}

/// Fails where a file of a kind could not be written at this path, so that nobody computes in vain, and where it would take
/// the place of another kind's: what is there already must be a file that is empty or begins with these bytes.
pub fn check_writable(path: &Path, kind: &[u8]) -> io::Result<()> {
    let names_folder = path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if path.is_dir() || names_folder {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    check_replaceable(path)?;
    if path.exists() {
        OpenOptions::new().append(true).open(path)?;
        let mut begin = Vec::new();
        File::open(path)?.take(kind.len() as u64).read_to_end(&mut begin)?;
        if !begin.is_empty() && begin != kind {
            let message = "a file of another kind is there already; remove it, or choose another name";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
    }
    check_folder(folder_of(path), path)
}

/// Bytes that this user may still write to the file system that a folder is on; `None` where the system does not tell.
fn available_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(folder).ok().map(|system| system.f_bavail.saturating_mul(system.f_frsize));
    #[cfg(not(unix))]
    return None;
}

/// Fails where a file of so many bytes would not fit at this path, beside one that it replaces.
pub fn check_room(path: &Path, bytes: u64) -> io::Result<()> {
    let folder = folder_of(path);
    match available_bytes(folder) {
        Some(available) if available < bytes => {
            let [needed, available] = [bytes, available].map(format_bytes);
            let message = format!("it takes about {needed}, and {} has room for {available}", folder.display());
            Err(io::Error::new(io::ErrorKind::StorageFull, message))
        }
        _ => Ok(()),
    }
}

/// Fails where no file could be made in a folder, nor the folder where there is none. Nothing is left behind.
pub fn check_writable_folder(folder: &Path) -> io::Result<()> {
    // The nearest that is there; a relative path begins in the current folder.
    let there = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    check_folder(there, &there.join("file"))
}

fn check_folder(folder: &Path, target: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        let message = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let partial = partial_path(target);
    File::create(&partial)?;
    std::fs::remove_file(&partial)
}

/// Contents written beside a target, to be renamed, so that the target is never seen half written. Removed where it is
/// dropped instead.
pub struct Partial<'p> {
    target: &'p Path,
    path: PathBuf,
    /// Open until all is written.
    file: Option<File>,
}

impl<'p> Partial<'p> {
    /// A file to be written; a secret one can be read by its owner only.
    pub fn create(target: &'p Path, secret: bool) -> io::Result<Self> {
        check_replaceable(target)?;
        let mut partial = Self { target, path: partial_path(target), file: None };
        partial.file = Some(create(&partial.path, secret)?);
        Ok(partial)
    }

    /// Writes the parts, one after another; a secret file can be read by its owner only.
    pub fn write(target: &'p Path, parts: &[&[u8]], secret: bool) -> io::Result<Self> {
        let mut partial = Self::create(target, secret)?;
        for part in parts {
            partial.write_all(part)?;
        }
        partial.finish()
    }

    /// Waits until all that was written is safe.
    pub fn finish(mut self) -> io::Result<Self> {
        if let Some(file) = self.file.take() {
            file.sync_all()?;
        }
        Ok(self)
    }

    /// Puts the contents where they belong.
    pub fn rename(self) -> io::Result<()> {
        std::fs::rename(&self.path, self.target)
    }
}

impl Write for Partial<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or_else(|| Err(io::ErrorKind::BrokenPipe.into()), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // Gone after a rename; else what is left of a failed attempt is of no use.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Replaces a file by the parts, one after another: it is never seen half written. A secret file can be read by its owner
/// only.
pub fn replace(path: &Path, parts: &[&[u8]], secret: bool) -> io::Result<()> {
    Partial::write(path, parts, secret)?.rename()
}

fn create(path: &Path, secret: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    if secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = secret;
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_told_by_the_path_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let missing = check_writable(&folder.path().join("none/file"), b"k").unwrap_err();
        assert_eq!(missing.to_string(), format!("there is no folder {}", folder.path().join("none").display()));
        assert_eq!(check_writable(folder.path(), b"k").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(check_writable(&folder.path().join("none/"), b"k").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        check_writable(&file, b"k").unwrap();
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is left of the attempt");
        std::fs::write(&file, "kindly kept").unwrap();
        check_writable(&file, b"k").unwrap();
        assert_eq!(check_writable(&file, b"kind").err().map(|error| error.kind()), None);
        assert_eq!(check_writable(&file, b"other").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(is_same(&file, &folder.path().join("./file")) && is_same(&file, &folder.path().join("file")));
        let new = |name: &str| folder.path().join(name);
        assert!(is_same(&new("./new"), &new("new")) && !is_same(&new("new"), &file));
        assert_eq!(std::fs::read(&file).unwrap(), b"kindly kept");
        let below = check_writable(&file.join("below"), b"k").unwrap_err().to_string();
        assert!(below.contains("there is no folder") && !below.contains("partial"), "{below}");
        check_writable_folder(&folder.path().join("new/folder")).unwrap();
        assert!(!new("new").exists());
        assert!(check_writable_folder(&file).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_larger_than_the_room_is_refused_with_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        check_room(&file, 1).unwrap();
        let error = check_room(&file, 1 << 60).unwrap_err();
        let (text, begin) = (error.to_string(), format!("it takes about {}, and ", format_bytes(1 << 60)));
        assert!(text.starts_with(&begin) && text.contains("has room for"), "{text}");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_pipes_are_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, symlink};

        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/dev/null", &link).unwrap();
        // A socket stands for a pipe: neither is a file, and both are waited for where they are opened.
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [Path::new("/dev/null"), &link, &socket] {
            assert!(is_stream(path));
            for refused in [check_writable(path, b"k"), replace(path, &[b"new"], false)] {
                let message = refused.unwrap_err().to_string();
                assert!(message.contains("a device or a pipe"), "{message}");
            }
        }
        assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        assert!(!is_stream(folder.path()) && !is_stream(&folder.path().join("new")));
    }

    #[test]
    fn a_target_is_replaced_as_a_whole_or_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "old").unwrap();
        drop(Partial::write(&file, &[b"new"], false).unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        replace(&file, &[b"n", b"ew"], true).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
