//! Weights from the exporter's file to the plan: in the form in which the file has them, inside the plan or referred to.

use std::path::{Path, PathBuf};

use cachemir_compiler::{Compilation, CompileOptions, compile};
use cachemir_ir::plan::{Plan, Storage};
use cachemir_ir::weights::{Encoding, Weights};
use cachemir_runtime::{GenerateOptions, Plans, Prompt, Session};
use cachemir_tests::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use cachemir_tests::onnx::{FLOAT, UINT8, int, stored};
use prost::Message;

/// The upper half of single precision, by ONNX's number.
const BFLOAT16: i32 = 16;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

fn compiled(model: &Path) -> Compilation {
    let options = CompileOptions {
        calibration: Some(folder().join("calibration.txt")),
        config: Some(folder().join("config.json")),
        tokenizer: Some(folder().join("tokenizer.json")),
        parameters: "insecure-test".to_owned(),
        ..CompileOptions::default()
    };
    compile(model, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// The shipped model, changed.
fn changed(change: impl Fn(&mut GraphProto)) -> Compilation {
    let bytes = std::fs::read(folder().join("onnx/optimum/model.onnx")).expect("the model is there");
    let mut model = ModelProto::decode(bytes.as_slice()).expect("it is a model");
    change(model.graph.as_mut().expect("a graph"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).expect("it is writable");
    compiled(&path)
}

fn numbers(tensor: &TensorProto) -> Vec<f32> {
    let (words, _) = tensor.raw_data.as_ref().expect("raw values").as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn raw(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let (domain, op_type) = op.rsplit_once("::").unwrap_or(("", op));
    NodeProto {
        name: Some(format!("{op_type} for {output}")),
        domain: Some(domain.to_owned()),
        op_type: Some(op_type.to_owned()),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// Every matrix as bfloat16 and a cast, or as the same numbers in single precision.
fn to_bfloat16(graph: &mut GraphProto, narrow: bool) {
    for tensor in &mut graph.initializer {
        if tensor.data_type() != FLOAT || tensor.dims.len() != 2 || tensor.raw_data.is_none() {
            continue;
        }
        let upper: Vec<u16> = numbers(tensor).into_iter().map(|value| (value.to_bits() >> 16) as u16).collect();
        let (name, shape) =
            (tensor.name().to_owned(), tensor.dims.iter().map(|&extent| extent as usize).collect::<Vec<_>>());
        if narrow {
            let half = format!("{name}/half");
            *tensor = stored(&half, BFLOAT16, &shape, upper.into_iter().flat_map(u16::to_le_bytes).collect());
            let cast = NodeProto { attribute: vec![int("to", FLOAT.into())], ..node("Cast", &[&half], &name) };
            graph.node.insert(0, cast);
        } else {
            let values = upper.into_iter().map(|upper| f32::from_bits(u32::from(upper) << 16));
            *tensor = stored(&name, FLOAT, &shape, raw(values));
        }
    }
}

/// Every product with a stored matrix as one with 4-bit integers in blocks, or with the same numbers in single precision.
fn to_integers(graph: &mut GraphProto, narrow: bool) {
    const BLOCK: usize = 32;
    let mut graph_nodes = std::mem::take(&mut graph.node);
    for product in graph_nodes.iter_mut().filter(|node| node.op_type() == "MatMul") {
        let matrix = graph.initializer.iter_mut().find(|tensor| tensor.name() == product.input[1]);
        let Some(matrix) = matrix.filter(|matrix| matrix.dims.len() == 2) else { continue };
        let (inputs, outputs) = (matrix.dims[0] as usize, matrix.dims[1] as usize);
        let values = numbers(matrix);
        let blocks = inputs.div_ceil(BLOCK);
        let mut dense = vec![0.0; values.len()];
        let (mut packed, mut scales) = (vec![0_u8; outputs * blocks * BLOCK / 2], Vec::new());
        for output in 0..outputs {
            for block in 0..blocks {
                let rows = block * BLOCK..inputs.min((block + 1) * BLOCK);
                let most = rows.clone().map(|row| values[row * outputs + output].abs()).fold(0.0, f32::max);
                let scale = most / 7.0;
                scales.push(scale);
                for row in rows {
                    let integer = (values[row * outputs + output] / scale.max(f32::MIN_POSITIVE)).round() as i8 + 8;
                    let place = output * blocks * BLOCK + row;
                    packed[place / 2] |= (integer as u8) << (4 * (place % 2));
                    dense[row * outputs + output] = (f64::from(integer - 8) * f64::from(scale)) as f32;
                }
            }
        }
        if narrow {
            let name = product.output[0].clone();
            let [bytes, of_blocks] = ["bytes", "scales"].map(|part| format!("{name}/{part}"));
            *matrix = stored(&bytes, UINT8, &[outputs, blocks, BLOCK / 2], packed);
            graph.initializer.push(stored(&of_blocks, FLOAT, &[outputs * blocks], raw(scales)));
            let attribute = vec![
                int("K", inputs as i64),
                int("N", outputs as i64),
                int("bits", 4),
                int("block_size", BLOCK as i64),
            ];
            let made = node("com.microsoft::MatMulNBits", &[&product.input[0], &bytes, &of_blocks], &name);
            *product = NodeProto { attribute, name: product.name.clone(), ..made };
        } else {
            *matrix = stored(&product.input[1].clone(), FLOAT, &[inputs, outputs], raw(dense));
        }
    }
    graph.node = graph_nodes;
}

#[test]
fn narrow_models_make_narrow_plans_with_the_entries_of_wide_ones() {
    // The embedding stays as it is where products alone are changed.
    for (name, change, part) in [
        ("bfloat16", to_bfloat16 as fn(&mut GraphProto, bool), 0.55),
        ("int4", to_integers as fn(&mut GraphProto, bool), 0.22),
    ] {
        let [narrow, wide] = [true, false].map(|narrow| changed(|graph| change(graph, narrow)));
        let hashes = |compilation: &Compilation| -> Vec<_> {
            compilation.tensor.weights.iter().map(|weight| (weight.name.clone(), weight.hash)).collect()
        };
        assert_eq!(hashes(&narrow), hashes(&wide), "{name}");
        let [narrow, wide] = [narrow, wide].map(|compilation| compilation.plan);
        let entries = |plan: &Plan| {
            let mut entries = plan.program.entries.clone();
            // Products with integers have another name in ONNX.
            let origins = entries.iter_mut().flat_map(|entry| &mut entry.graph.origins);
            origins.for_each(|origin| origin.op_type.clear());
            entries
        };
        assert!(entries(&narrow) == entries(&wide), "{name}: the programs differ");
        for (a, b) in narrow.program.tables.iter().zip(wide.program.tables.iter()) {
            assert_eq!(a.name, b.name);
            let (a, b) = (a.load().expect("it is there"), b.load().expect("it is there"));
            assert!(a.iter().zip(&*b).all(|(a, b)| a.to_bits() == b.to_bits()) && a.len() == b.len(), "{name}");
        }
        let matrices = |plan: &Plan| -> Vec<Weights> {
            let named = plan.program.tables.iter().filter(|table| table.name.ends_with("proj"));
            named.filter_map(|table| table.weights().cloned()).collect()
        };
        let regions = |plan: &Plan| matrices(plan).iter().map(|weights| weights.stored().region.length()).sum::<u64>();
        assert_eq!(matrices(&narrow).len(), 14);
        assert!(regions(&narrow) as f64 <= part * regions(&wide) as f64, "{name}");
        let saved = regions(&wide) - regions(&narrow);
        let [narrow_bytes, wide_bytes] =
            [&narrow, &wide].map(|plan| plan.to_bytes().expect("a valid plan").len() as u64);
        assert!(wide_bytes - narrow_bytes > saved * 3 / 4, "{name}: {narrow_bytes} bytes, {wide_bytes} wide");
        let integers = |weights: &Weights| matches!(weights.stored().encoding, Encoding::Integers(_));
        assert_eq!(matrices(&narrow).iter().all(integers), name == "int4");
    }
}

/// The tokens that a plan continues a prompt by, in the clear.
fn text(plans: &Plans) -> Result<Vec<u32>, cachemir_runtime::Error> {
    let mut session = Session::clear(plans)?;
    session.prompt(Prompt::Tokens(vec![0, 378, 379]))?;
    let options = GenerateOptions { max_tokens: 8, stop_at_end: false, ..GenerateOptions::default() };
    Ok(session.generate(&options, &mut ())?.new_tokens().to_vec())
}

#[test]
fn a_plan_that_refers_to_the_model_gives_the_same_text_until_the_model_changes() {
    let target = tempfile::tempdir().expect("a folder");
    let [models, plans] = ["models", "plans"].map(|name| target.path().join(name));
    for folder in [&models, &plans] {
        std::fs::create_dir(folder).expect("it is writable");
    }
    let data = models.join("model.onnx.data");
    for name in ["model.onnx", "model.onnx.data"] {
        std::fs::copy(folder().join("onnx/genai_fp32").join(name), models.join(name)).expect("it is writable");
    }
    let plan = compiled(&models.join("model.onnx")).plan;
    let [inside, beside, again] = ["inside.bin", "beside.bin", "again.bin"].map(|name| plans.join(name));
    plan.write(&inside).expect("it is written");
    for path in [&beside, &again] {
        plan.write_with(path, Storage::Reference).expect("it is written");
    }
    let bytes = |path: &Path| std::fs::read(path).expect("it is written");
    assert_eq!(bytes(&beside), bytes(&again));
    let saved = bytes(&inside).len() - bytes(&beside).len();
    assert!(saved as u64 > std::fs::metadata(&data).expect("it is there").len() * 9 / 10, "{saved} bytes");
    let file = bytes(&beside);
    let written = b"../models/model.onnx.data";
    assert!(file.windows(written.len()).any(|window| window == written), "the path is relative");

    let read = |path: &Path| Plans::read(path).unwrap_or_else(|error| panic!("{error}"));
    assert!(read(&inside).server == plan && read(&beside).server == plan);
    let expected = text(&read(&inside)).expect("it runs");
    assert_eq!(text(&read(&beside)).expect("it runs"), expected);
    read(&beside).server.check_all().expect("nothing changed");

    // The folder of both moves.
    let moved = target.path().join("elsewhere");
    std::fs::create_dir(&moved).expect("it is writable");
    for folder in [&models, &plans] {
        std::fs::rename(folder, moved.join(folder.file_name().expect("a name"))).expect("it moves");
    }
    let (data, beside, inside) =
        (moved.join("models/model.onnx.data"), moved.join("plans/beside.bin"), moved.join("plans/inside.bin"));
    assert_eq!(text(&read(&beside)).expect("it runs"), expected);

    let whole = std::fs::read(&data).expect("it is there");
    let refused = |problem: &str| {
        let error = text(&read(&beside)).expect_err(problem);
        assert_eq!(error.code(), "CMR-R007", "{error}");
        let message = error.to_string();
        for part in ["layers.", "model.onnx.data", problem, "compile the model again"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        assert!(read(&beside).server.check_all().is_err());
        assert_eq!(text(&read(&inside)).expect("it runs"), expected, "the plan with its weights inside needs no model");
    };
    let mut other = whole.clone();
    other.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
    std::fs::write(&data, &other).expect("it is writable");
    refused("should be");
    std::fs::write(&data, &whole[..whole.len() / 100]).expect("it is writable");
    refused("bytes long");
    std::fs::remove_file(&data).expect("it goes");
    refused("have the hash");
    std::fs::write(&data, &whole).expect("it is writable");
    assert_eq!(text(&read(&beside)).expect("it runs"), expected);
}
