//! Sessions as files.

use cachemir_ir::ckks::{CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::expression::Integer;
use cachemir_ir::graph::Region;
use cachemir_ir::program::{EmbeddingForm, Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Domain, Fill, Layout, StateId, WriteMode};

use super::*;
use crate::client::SavedClient;
use crate::executor::{CkksProgram, Clear, ClearCiphertext};

const LEVELS: Levels = Levels { output: 4, bootstrap_input: 1 };

/// state[pos % 2] += x; yields state[0].
fn program() -> CkksProgram {
    let layout = Layout { stride: 1, fill: Fill::Zero, domain: Domain::Real };
    let ty = CiphertextType { level: 4, product: false, layout, max_abs: 8.0 };
    let mut graph = CkksGraph::default();
    let x = graph.add_input("x", ty);
    let index = Integer::position() % 2;
    let op = CkksOp::StateWrite { state: StateId(0), index, mode: WriteMode::Accumulate };
    let (write, _) = graph.add_node(op, vec![x], vec![], None, None);
    let op = CkksOp::StateRead { state: StateId(0), index: Integer::from(0_i64) };
    let (read, yields) = graph.add_node(op, vec![], vec![ty], None, None);
    graph.body = Region { ops: vec![write, read], yields };
    let placement = Placement { index_to_slot: vec![0], token_stride: 1 };
    Program {
        slots: 2,
        context: 4,
        tables: std::sync::Arc::default(),
        states: vec![State { name: "sum".to_owned(), capacity: 2, layout, level: Some(4), initial: None }],
        prefix: vec![],
        entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
        embedding: placement.clone(),
        inputs: vec![EmbeddingForm::scaled(1.0)],
        logits: placement,
    }
}

fn server(program: &CkksProgram, hash: u8) -> Server<'_, Clear> {
    Server::new(Executor::new(Clear::new(2, LEVELS), program, LEVELS, 0).unwrap(), [hash; 32])
}

fn decode(server: &Server<'_, Clear>, session: &mut Session<ClearCiphertext>, value: f64) -> Result<f64, Error> {
    let outputs = server.decode(session, vec![ClearCiphertext::fresh(&[value, 0.5], 4)], &mut ())?;
    Ok(outputs[0].slots[0].re)
}

#[test]
fn a_session_continues_from_its_file() {
    let program = program();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let mut session = server(&program, 1).open();
    assert_eq!(decode(&server(&program, 1), &mut session, 3.0).unwrap(), 3.0);
    server(&program, 1).save(&session, &path).unwrap();

    let server = server(&program, 1);
    let mut restored = server.load(&path).unwrap();
    assert_eq!(restored.position(), 1);
    assert!(restored.states().arrays()[0][1].is_none(), "what was never written is not stored");
    assert_eq!(decode(&server, &mut restored, 5.0).unwrap(), 3.0);
    assert_eq!(decode(&server, &mut restored, 0.25).unwrap(), 3.25);
    assert_eq!(decode(&server, &mut restored, 1.0).unwrap(), 3.25);
    assert_eq!(decode(&server, &mut restored, 1.0).unwrap_err().code(), "CMR-R033");
    assert_eq!(restored.position(), 4);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let program = program();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let server = server(&program, 1);
    let mut session = server.open();
    decode(&server, &mut session, 3.0).unwrap();
    server.save(&session, &path).unwrap();
    assert_eq!(self::server(&program, 2).load(&path).unwrap_err().code(), "CMR-R031");

    let good = std::fs::read(&path).unwrap();
    for position in (0..good.len()).step_by(3) {
        let mut altered = good.clone();
        altered[position] ^= 0x10;
        for bytes in [&altered[..], &good[..position]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(server.load(&path).unwrap_err().code(), "CMR-R030");
        }
    }
    let missing = folder.path().join("missing");
    assert_eq!(server.load(&missing).unwrap_err().code(), "CMR-R030");
    let unwritable = folder.path().join("nowhere").join("session");
    assert_eq!(server.save(&session, &unwritable).unwrap_err().code(), "CMR-R021");
    assert_eq!(crate::setup::check_writable(&unwritable, &SavedSession::MAGIC).unwrap_err().code(), "CMR-R021");
    assert_eq!(crate::setup::check_writable(folder.path(), &SavedSession::MAGIC).unwrap_err().code(), "CMR-R021");
    crate::setup::check_writable(&path, &SavedSession::MAGIC).unwrap();
    assert_eq!(crate::setup::check_writable(&path, &SavedClient::MAGIC).unwrap_err().code(), "CMR-R021");
}

#[test]
fn the_server_and_the_executor_do_not_know_the_client() {
    let sources = [
        include_str!("mod.rs"),
        include_str!("session.rs"),
        include_str!("../executor/mod.rs"),
        include_str!("../executor/algebra.rs"),
        include_str!("../executor/checked.rs"),
        include_str!("../executor/clear.rs"),
        include_str!("../executor/encrypted.rs"),
        include_str!("../executor/plaintexts.rs"),
        include_str!("../executor/schedule.rs"),
        include_str!("../executor/state.rs"),
    ];
    for source in sources {
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for name in ["SecretKey", "SecretCipher", "Decryptor", "Encryptor", "KeyGenerator", "crate::client"] {
                assert!(!line.contains(name), "the server's code names {name}: {line}");
            }
        }
    }
}
