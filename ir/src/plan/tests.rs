//! Plans survive writing and reading, and nothing else is read.

use proptest::prelude::*;

use super::*;
use crate::ckks::{Bootstrap, CkksGraph};
use crate::expression::{Integer, TableId, Vector};
use crate::graph::{self, Origin};
use crate::operations::{Call, Operations};
use crate::program::{EmbeddingForm, Entry, EntryPoint, State};
use crate::slots::{Chebyshev, Domain, Fill, Layout, StateId, WriteMode};
use crate::table::Table;
use crate::weights::{Encoding, Float, Floats, Integers, Orientation, Region, Stored, Weights, Zeros};

/// A small plan that uses every part of the format.
#[allow(clippy::too_many_lines)]
pub(crate) fn example() -> Plan {
    let layout = Layout { stride: 4, fill: Fill::Junk, domain: Domain::Real };
    let ty = |level, product| CiphertextType { level, product, layout, max_abs: 0.75 };
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty(4, false));
    let origin = Some(graph.intern_origin(Origin { node: "/model/q proj".into(), op_type: "MatMul".into() }));
    let mut body = graph::Region::default();
    let mut push = |graph: &mut CkksGraph, op, inputs: &[crate::graph::ValueId], result: Option<CiphertextType>| {
        let (op, results) = graph.add_node(op, inputs.to_vec(), result.into_iter().collect(), origin, None);
        body.ops.push(op);
        results.first().copied().unwrap_or(x)
    };
    let plain = Vector::Table(TableId(0), Integer::slot() % 6).masked(Integer::slot().less(24)).times(0.1);
    let product = push(&mut graph, CkksOp::MultiplyPlain { plain }, &[x], Some(ty(4, true)));
    let rescaled = push(&mut graph, CkksOp::Rescale, &[product], Some(ty(3, false)));
    let index = Integer::position() / 8;
    let write = CkksOp::StateWrite { state: StateId(0), index, mode: WriteMode::Accumulate };
    push(&mut graph, write, &[rescaled], None);
    let keep = Some((Integer::slot() % 4).equal(0));
    let bootstrap = CkksOp::Bootstrap(Bootstrap { complex: false, keep, factor: 0.5, log2_magnitude: 0 });
    let fresh = push(&mut graph, bootstrap, &[rescaled], Some(ty(16, false)));
    let polynomial = Chebyshev { coefficients: vec![0.1, -0.0, 1e-300, 2.5], interval: [-1.0, 1.0] };
    let result = push(&mut graph, CkksOp::Polynomial { polynomial, mask: None }, &[fresh], Some(ty(14, false)));
    let by = (Integer::position() % 8).less(4).select(-4, 4);
    let landed = push(&mut graph, CkksOp::Rotate { by }, &[result], Some(ty(14, false)));
    let read = CkksOp::StateRead { state: StateId(0), index: Integer::counter(0) };
    let (inner, values) = graph.add_node(read, vec![], vec![ty(3, false)], None, None);
    let region = graph::Region { ops: vec![inner], yields: values };
    let sum = CkksOp::Sum { counter: 0, count: Integer::position() / 8 + 1 };
    let (sum, _) = graph.add_node(sum, vec![], vec![ty(3, false)], origin, Some(region));
    body.ops.push(sum);
    graph.nodes[1].layer = Some(31);
    body.yields = vec![landed];
    graph.body = body;
    let placement = Placement { index_to_slot: vec![0, 4, 8], token_stride: 1 };
    let program = Program {
        slots: 32,
        context: 16,
        tables: vec![Table::new("w", [2, 3], vec![1.0, -2.0, 0.5, 1e-9, 0.0, 7.0])].into(),
        states: vec![State { name: "cache".into(), capacity: 2, layout, level: Some(3), initial: None }],
        prefix: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(0.25)],
        logits: placement,
    };
    Plan {
        parameters: Parameters::insecure_test(),
        keys: KeyManifest::of(&program),
        program,
        model: ClientModel {
            name: "tiny".into(),
            tokenizer: Some(b"{}".to_vec()),
            chat: Some(ChatTemplate {
                source: "{{ bos_token }}".into(),
                tokens: [("bos_token".into(), "<s>".into())].into(),
            }),
            vocabulary: 3,
            hidden: 3,
            embedding: Some(vec![0.5; 9].into()),
            eos: vec![2],
            guard: Guard {
                logits: [-2.5, 7.0],
                zeros: vec![12],
                noise_gain: 40.0,
                norm: Some(NormCheck {
                    tokens: vec![2, 0, 1],
                    triangle: vec![2.0, 0.5, 1.0, 0.0, 0.25, 1.5],
                    length: [0.9, 1.1],
                    gain: 0.5,
                    others: Others::Rows(vec![1, 2], vec![0.5; 6]),
                    deviation: 0.01,
                    deviation_gain: 3.0,
                }),
            },
        },
        provenance: Provenance {
            model_hash: [7; 32],
            predicted_ns_per_token: 1.5e9,
            cost_table: "a table".into(),
            ..Provenance::default()
        },
        counts: vec![CallCounts {
            call: Call { kind: EntryKind::Prefill { chunk: 4 }, position: 8, tokens: 3 },
            operations: Operations { rotations: 1, masks: 2, ..Operations::default() },
            masks: vec![MaskCount { reason: "a reason".into(), count: 2 }],
            predicted_ns: 7,
        }],
        approximations: vec![Approximation {
            site: "layer 0 silu".into(),
            function: "silu(x)".into(),
            method: "minimax".into(),
            accurate: [-1.0, 2.0],
            sane: [-3.0, 4.0],
            derived: Some([-5.0, 6.0]),
            degree: 12,
            depth: 4,
            max_error: 1e-3,
            measure: Measure::Relative,
            cancels: true,
            escape_proof: false,
            checked: true,
        }],
        prefill_pays: vec![],
    }
}

/// The example with an entry point `prefill`, which does what `decode` does.
pub(crate) fn with_prefill() -> Plan {
    let mut plan = example();
    let prefill = Entry { kind: EntryKind::Prefill { chunk: 4 }, ..plan.program.entries[0].clone() };
    plan.program.entries.push(prefill);
    plan.prefill_pays = vec![2, 3, 4, 5];
    plan
}

#[test]
fn plans_round_trip_and_are_reproducible() {
    let plan = example();
    let bytes = plan.to_bytes().unwrap();
    assert_eq!(bytes, plan.to_bytes().unwrap());
    let back = Plan::from_bytes(&bytes).unwrap();
    assert_eq!(back, plan);
    let client = plan.client(Plan::hash_of(&bytes).unwrap());
    assert_eq!(ClientPlan::from_bytes(&client.to_bytes().unwrap()).unwrap(), client);
    assert_eq!(client.entry(EntryPoint::Decode).unwrap().input_levels, [4]);
    assert_eq!(client.model.embedding_of(2).unwrap(), Some(&[0.5_f32; 3][..]));
    assert_eq!(client.model.embedding_of(3).unwrap(), None);
    let mut other = plan.clone();
    other.model.tokenizer = None;
    other.model.chat = None;
    other.model.guard.norm.as_mut().unwrap().others = Others::Embedding(vec![0.25; 9]);
    assert_eq!(Plan::from_bytes(&other.to_bytes().unwrap()).unwrap(), other);
    other.model.guard = Guard::of_logits(-1.0, 1.0);
    assert_eq!(Plan::from_bytes(&other.to_bytes().unwrap()).unwrap(), other);
    assert_eq!(plan.keys.rotations, [28, 4].map(|by| (by, [14].into())).into());
}

#[test]
fn both_files_say_where_prefill_pays() {
    let plan = with_prefill();
    let bytes = plan.to_bytes().unwrap();
    assert_eq!(Plan::from_bytes(&bytes).unwrap(), plan);
    let client = plan.client(Plan::hash_of(&bytes).unwrap());
    assert_eq!(client.prefill_pays, [2, 3, 4, 5]);
    assert_eq!(ClientPlan::from_bytes(&client.to_bytes().unwrap()).unwrap(), client);
    for (pays, expected) in [
        (vec![2, 3, 4], "at 3 positions, not 4"),
        (vec![2, 3, 4, 5, 5], "at 5 positions, not 4"),
        (vec![], "at 0 positions, not 4"),
        (vec![2, 1, 4, 5], "from 1 tokens"),
        (vec![2, 3, 4, 6], "from 6 tokens"),
    ] {
        let message = Plan { prefill_pays: pays.clone(), ..plan.clone() }.to_bytes().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        let message = ClientPlan { prefill_pays: pays, ..client.clone() }.to_bytes().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message = Plan { prefill_pays: vec![2], ..example() }.to_bytes().unwrap_err().to_string();
    assert!(message.contains("at 1 positions, not 0"), "{message}");
}

/// The example as it is compiled from shapes alone.
fn without_weights() -> Plan {
    let mut plan = example();
    plan.program.tables = vec![Table::of_shape("w", [2, 3], 0.25)].into();
    plan.model.embedding = None;
    plan
}

#[test]
fn plans_without_weights_say_so() {
    let plan = without_weights();
    let bytes = plan.to_bytes().unwrap();
    let back = Plan::from_bytes(&bytes).unwrap();
    assert_eq!(back, plan);
    assert!(!back.has_weights() && !back.program.has_weights() && example().has_weights());
    let client = plan.client(Plan::hash_of(&bytes).unwrap());
    let back = ClientPlan::from_bytes(&client.to_bytes().unwrap()).unwrap();
    assert!(back == client && !back.model.has_weights());
}

#[test]
fn the_two_files_are_not_mistaken_for_each_other() {
    let bytes = example().to_bytes().unwrap();
    assert!(matches!(ClientPlan::from_bytes(&bytes), Err(Error::NotAPlan { expected: "client plan" })));
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = example().to_bytes().unwrap();
    for length in 0..bytes.len() {
        let error = Plan::from_bytes(&bytes[..length]).unwrap_err();
        assert!(matches!(error, Error::PlanLength { .. }) || length == 0, "{length}: {error}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(Plan::from_bytes(&longer), Err(Error::PlanLength { .. })));
    let header = 64 + u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
    for offset in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[offset] ^= 1 << (offset % 8);
        let opened = Plan::from_bytes(&altered);
        let expected = match offset {
            0..8 => "plan-magic",
            8..12 => "plan-version",
            16..24 => "plan-length",
            _ if offset < header => "plan-altered",
            _ => "weights-changed",
        };
        assert!(opened.is_err() || offset >= header, "byte {offset}");
        assert_eq!(opened.and_then(|plan| plan.check_all()).unwrap_err().code(), expected, "byte {offset}");
    }
}

#[test]
fn a_newer_version_is_refused_with_both_versions() {
    let mut bytes = example().to_bytes().unwrap();
    bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let message = Plan::from_bytes(&bytes).unwrap_err().to_string();
    assert!(
        message.contains(&format!("version {}", FORMAT_VERSION + 1))
            && message.contains(&format!("version {FORMAT_VERSION}")),
        "{message}"
    );
}

#[test]
fn files_are_written_in_pairs_and_whole() {
    let folder = std::env::temp_dir().join(format!("cachemir-plan-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("tiny.bin");
    let plan = example();
    plan.write(&path).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);
    let client = ClientPlan::read(&client_path(&path)).unwrap();
    assert_eq!(client.plan_hash, Plan::hash_of(&std::fs::read(&path).unwrap()).unwrap());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(plan.write(&path).unwrap_err().code(), "plan-file");
    assert_eq!(Plan::read(&path).unwrap_err().code(), "plan-file");
}

/// The example with a table of every encoding, folded.
fn with_stored_weights() -> Plan {
    let mut plan = example();
    let region = |bytes: &[u8]| Region::of_bytes(bytes.to_vec().into(), None);
    let floats = |bytes: &[u8], kind| Floats { region: region(bytes), kind };
    let one = |region: Region, encoding, orientation, outputs| {
        let extents = if orientation == Orientation::InputsFirst { [3, 2] } else { [2, 3] };
        Weights::new(Stored { region, encoding, extents, orientation, outputs, scale: 0.5 }).unwrap()
    };
    let halves = [0, 60, 0, 61, 0, 62, 0, 188, 0, 189, 0, 190];
    let scales = || floats(&[0, 60, 0, 61], Float::F16);
    let integers = |zeros| {
        let integers = Integers { bits: 4, signed: false, row_length: 4, block: [1, 3], scales: scales(), zeros };
        one(region(&[0x21, 0x03, 0x65, 0x07]), Encoding::Integers(integers), Orientation::OutputsFirst, None)
    };
    let gamma = Region::of_numbers(vec![1.0, 2.0, 3.0]);
    let weights = [
        one(region(&halves), Encoding::Float(Float::F16), Orientation::InputsFirst, Some(vec![1, 0])),
        one(region(&halves), Encoding::Float(Float::Bf16), Orientation::OutputsFirst, None),
        integers(Zeros::All(8)),
        integers(Zeros::Integers { region: region(&[0x21, 0x43]), row_length: 2 }),
        integers(Zeros::Floats(floats(&[0, 60, 0, 61], Float::Bf16))),
    ];
    let tables = (0..).zip(weights).map(|(number, weights)| {
        let folded = weights.folded(Some(gamma.clone()), 1.5 + f64::from(number)).unwrap();
        Table::stored(format!("w{number}"), [2, 3], folded)
    });
    plan.program.tables = tables.collect::<Vec<_>>().into();
    plan
}

#[test]
fn stored_weights_survive_as_they_are_and_equal_ones_are_written_once() {
    let plan = with_stored_weights();
    let bytes = plan.to_bytes().unwrap();
    let back = Plan::from_bytes(&bytes).unwrap();
    back.check_all().unwrap();
    assert_eq!(back, plan);
    assert_eq!(bytes, back.to_bytes().unwrap());
    for (a, b) in back.program.tables.iter().zip(plan.program.tables.iter()) {
        assert_eq!(a.load().unwrap(), b.load().unwrap(), "{}", a.name);
    }
    let two = Plan {
        program: CkksProgram { tables: plan.program.tables[..2].to_vec().into(), ..plan.program.clone() },
        ..plan
    };
    let more = bytes.len() - two.to_bytes().unwrap().len();
    assert!(more < 400, "three tables of 4 bytes and what is said of them take {more}");
}

#[test]
fn files_are_opened_without_their_weights_and_name_others_from_their_folder_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let values = [1.0f32, -2.0, 0.5, 1e-9, 0.0, 7.0].map(f32::to_le_bytes).concat();
    std::fs::write(&data, [&[9; 10], values.as_slice()].concat()).unwrap();
    let region = Region::of_file(crate::weights::DataFile::new(&data), 10, 24).unwrap();
    let mut plan = example();
    let known = plan.program.tables[0].weights().unwrap().stored().clone();
    let weights = Weights::new(Stored { region, ..known }).unwrap();
    plan.program.tables = vec![Table::stored("w", [2, 3], weights)].into();
    assert_eq!(plan, example(), "it does not matter where the bytes are");
    let [inside, beside] = ["inside.bin", "beside.bin"].map(|name| folder.path().join(name));
    plan.write(&inside).unwrap();
    plan.write_with(&beside, Storage::Reference).unwrap();
    assert_eq!(std::fs::read(&inside).unwrap(), example().to_bytes().unwrap());
    assert_ne!(Plan::hash_of_file(&inside).unwrap(), Plan::hash_of_file(&beside).unwrap());
    assert_eq!(plan.hash().unwrap(), Plan::hash_of_file(&inside).unwrap());
    for path in [&inside, &beside] {
        let read = Plan::read(path).unwrap();
        read.check_all().unwrap();
        assert_eq!(read, plan);
        assert_eq!(ClientPlan::read(&client_path(path)).unwrap().plan_hash, Plan::hash_of_file(path).unwrap());
    }
    std::fs::write(&data, [0; 34]).unwrap();
    let read = Plan::read(&beside).unwrap();
    assert_eq!(read.program.tables[0].load().unwrap_err().code(), "weights-changed");
    assert_eq!(read.check_all().unwrap_err().code(), "weights-changed");
    Plan::read(&inside).unwrap().check_all().unwrap();
    // Weights inside are altered.
    let mut bytes = std::fs::read(&inside).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&inside, bytes).unwrap();
    assert_eq!(Plan::read(&inside).and_then(|plan| plan.check_all()).unwrap_err().code(), "weights-changed");
}

#[test]
fn plans_that_make_no_sense_are_not_written() {
    let refuse = |change: fn(&mut Plan), expected: &str| {
        let mut plan = example();
        change(&mut plan);
        let message = plan.to_bytes().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    refuse(|plan| plan.program.slots = 33, "power of two");
    refuse(|plan| plan.program.context = 0, "context");
    refuse(|plan| plan.program.tables = std::sync::Arc::default(), "table t0");
    refuse(|plan| plan.program.states.clear(), "state array c0");
    refuse(|plan| plan.program.logits.index_to_slot[0] = 32, "out of range");
    refuse(|plan| plan.model.vocabulary = 4, "entries");
    refuse(|plan| plan.model.eos = vec![3], "special token 3");
    refuse(|plan| plan.model.guard.logits[1] = f64::NAN, "NaN");
    refuse(|plan| plan.model.guard.zeros = vec![32], "zero");
    refuse(|plan| plan.model.guard.norm.as_mut().unwrap().tokens[0] = 3, "vocabulary");
    refuse(|plan| plan.model.guard.norm.as_mut().unwrap().triangle.truncate(5), "width 3");
    refuse(|plan| plan.model.guard.norm.as_mut().unwrap().others = Others::Embedding(vec![0.0; 8]), "width 3");
    refuse(|plan| plan.model.guard.norm.as_mut().unwrap().gain = f64::INFINITY, "inf");
    refuse(|plan| plan.parameters.name = "fast".into(), "insecure-test");
    refuse(|plan| plan.keys.rotations.extend([(32, [1].into())]), "rotation by 32");
    refuse(|plan| plan.program.entries[0].graph.values[2].ty.level = 9, "level 9");
    refuse(|plan| plan.program.entries[0].graph.values[2].ty.max_abs = f64::NAN, "bound NaN");
    refuse(|plan| plan.program.inputs[0].scale = f64::INFINITY, "scale");
    refuse(|plan| drop(plan.program.entries.pop()), "decode");
    refuse(|plan| plan.model.embedding = None, "lacks other weights");
    refuse(|plan| plan.program.tables = vec![Table::of_shape("w", [2, 3], 0.1)].into(), "lacks other weights");
    refuse(|plan| plan.program.tables = vec![Table::of_shape("w", [2, 3], f64::NAN)].into(), "deviation NaN");
}

/// The file with its checksum set right again, as an attacker would.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= 64 {
        let length = bytes.len() as u64;
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        let header = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        let end = header.saturating_add(64).min(length) as usize;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes[..32]);
        hasher.update(&bytes[64..end]);
        bytes[32..64].copy_from_slice(hasher.finalize().as_bytes());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn forged_files_do_not_panic(changes in prop::collection::vec((0_usize..4000, any::<u8>()), 1..4), cut in 0_usize..4000) {
        let plan = if cut % 2 == 0 { with_prefill() } else { with_stored_weights() };
        let mut bytes = plan.to_bytes().unwrap();
        for (offset, byte) in changes {
            let offset = 24 + offset % (bytes.len() - 24);
            bytes[offset] = byte;
        }
        if cut % 4 == 0 {
            bytes.truncate(64 + cut % (bytes.len() - 64));
        }
        if let Ok(plan) = Plan::from_bytes(&sealed(bytes)) {
            prop_assert_eq!(plan.to_bytes().is_ok(), plan.check_all().is_ok());
        }
    }

    #[test]
    fn random_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Plan::from_bytes(&bytes).is_err());
        for (to, from) in bytes.iter_mut().zip(b"CMIRPLAN\x01\0\0\0\0\0\0\0") {
            *to = *from;
        }
        prop_assert!(Plan::from_bytes(&sealed(bytes)).is_err());
    }
}
