//! Files of every kind, changed at random: each is read or refused, and nothing panics, hangs or takes memory without bound.
//!
//! Plans, clients' files and sessions carry a checksum: changed alone they are refused; with their checksum set right again,
//! as an attacker would, they are used like sound ones if they are read. `CACHEMIR_FUZZ_CASES=100000 cargo test --release
//! -p cachemir-tests never_panic` tries so many cases of each kind. ONNX graphs have tests of this name in the compiler.

use std::path::Path;
use std::sync::OnceLock;

use cachemir_compiler::import::{ImportOptions, load};
use cachemir_compiler::{CompileOptions, compile};
use cachemir_ir::chat;
use cachemir_ir::plan::{ChatTemplate, ClientPlan, Plan};
use cachemir_ir::program::EntryPoint;
use cachemir_runtime::client::{ClearCipher, Client, Prompt, SavedClient, TextStream, Texts, Tokenizer};
use cachemir_runtime::executor::{Clear, Executor};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::Plans;
use cachemir_tests::fuzz::{cases, change_bytes, change_json, change_message};
use cachemir_tests::llama::{CONTEXT, Llama};
use cachemir_tests::{SplitMix, onnx};
use proptest::prelude::*;
use prost::Message;

/// A small decoder's plan, and the client's file.
fn plans() -> &'static (Vec<u8>, Vec<u8>) {
    static PLANS: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    PLANS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), 5);
        let options = CompileOptions { parameters: "insecure-test".to_owned(), ..CompileOptions::default() };
        let plan = compile(model, &options).unwrap_or_else(|error| panic!("{error}")).plan;
        let bytes = plan.to_bytes().expect("a valid plan");
        let client = plan.client(Plan::hash_of(&bytes).expect("its hash")).to_bytes().expect("a valid plan");
        (bytes, client)
    })
}

/// Writes a small decoder and its configuration into a folder.
fn model(folder: &Path, seed: u64) -> std::path::PathBuf {
    let mut random = SplitMix(seed);
    let model = Llama::new(&mut random).written(true, &mut random);
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).expect("it is writable");
    let config = format!("{{\"max_position_embeddings\": {CONTEXT}}}");
    std::fs::write(folder.join("config.json"), config).expect("it is writable");
    path
}

/// A plan or a client's file whose header is changed and whose checksum is right, as an attacker would.
fn forged(file: &[u8], random: &mut SplitMix) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes")) as usize;
    let end = 64 + number(24);
    let mut header = file[64..end].to_vec();
    for _ in 0..=random.below(3) {
        header = change_message(&header, random);
    }
    let mut forged = [&file[..64], &header, &file[end..]].concat();
    let length = forged.len() as u64;
    forged[16..24].copy_from_slice(&length.to_le_bytes());
    forged[24..32].copy_from_slice(&(header.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&forged[..32]);
    hasher.update(&forged[64..64 + header.len()]);
    forged[32..64].copy_from_slice(hasher.finalize().as_bytes());
    forged
}

/// The bytes changed until they differ.
fn changed(bytes: &[u8], random: &mut SplitMix) -> Vec<u8> {
    let mut other = bytes.to_vec();
    while other == bytes {
        change_bytes(&mut other, random);
    }
    other
}

/// Uses a plan for a token in the clear: any step may fail.
fn use_plans(plans: &Plans) -> Result<(), cachemir_runtime::Error> {
    let client = Client::new(&plans.client, ClearCipher)?;
    let program = &plans.server.program;
    let algebra = Clear::new(program.slots as usize, plans.server.levels());
    let server = Server::new(Executor::new(algebra, program, plans.server.levels(), 1 << 20)?, [0; 32]);
    let mut session = server.open();
    let tokens = Texts::new(&plans.client)?.prompt_tokens(&[], &Prompt::Tokens(vec![1, 2]))?;
    for (position, &token) in tokens.iter().enumerate() {
        let outputs = server.decode(&mut session, client.encrypt(EntryPoint::Decode, &[token])?, &mut ())?;
        client.decrypt(EntryPoint::Decode, position, 1, &outputs)?;
    }
    Ok(())
}

/// A saved session and its client's file, with the folder that they lie in.
fn saved() -> &'static (Vec<u8>, Vec<u8>) {
    static SAVED: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SAVED.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let client = ClientPlan::from_bytes(&plans().1).expect("a valid plan");
        let server = server(sound());
        let mut session = server.open();
        let client = Client::new(&client, ClearCipher).expect("a client");
        server
            .decode(&mut session, client.encrypt(EntryPoint::Decode, &[3]).expect("inputs"), &mut ())
            .expect("a token");
        let path = folder.path().join("session");
        server.save(&session, &path).expect("it is writable");
        let key = SavedClient::path(&path);
        let hash = SavedClient::hash_of(&path).expect("its hash");
        let saved = SavedClient {
            plan_hash: [0; 32],
            session_hash: hash,
            seed: [9; 32].into(),
            tokens: vec![3, 5],
            generated: 1,
        };
        saved.write(&key).expect("it is writable");
        (std::fs::read(path).expect("the session"), std::fs::read(key).expect("the client's file"))
    })
}

/// The unchanged plan.
fn sound() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| Plan::from_bytes(&plans().0).expect("a valid plan"))
}

fn server(plan: &Plan) -> Server<'_, Clear> {
    let algebra = Clear::new(plan.program.slots as usize, plan.levels());
    Server::new(Executor::new(algebra, &plan.program, plan.levels(), 1 << 20).expect("it runs"), [0; 32])
}

/// A session's file with a changed payload and the right checksum.
fn sealed(file: &[u8], random: &mut SplitMix) -> Vec<u8> {
    let end = file.len() - 32;
    let mut payload = file[12..end].to_vec();
    // Most of it are numbers of slots: what they mean lies in front of them.
    let mut head = payload.drain(..payload.len().min(120)).collect::<Vec<u8>>();
    change_bytes(if random.chance(3, 4) { &mut head } else { &mut payload }, random);
    let mut forged = [&file[..12], &head, &payload].concat();
    let hash = blake3::hash(&forged);
    forged.extend(hash.as_bytes());
    forged
}

fn shipped(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded");
    std::fs::read(folder.join(name)).expect("the shipped model has it")
}

/// A shipped graph with its weights.
fn shipped_graph() -> &'static [u8] {
    static GRAPH: OnceLock<Vec<u8>> = OnceLock::new();
    GRAPH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded");
        onnx::read(&folder.join("onnx/genai_fp32/model.onnx"), 16).encode_to_vec()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(150)))]

    #[test]
    fn changed_plans_never_panic(seed in any::<u64>()) {
        let mut random = SplitMix(seed);
        let (plan, client) = plans();
        let whole = Plan::from_bytes(&changed(plan, &mut random)).and_then(|plan| plan.check_all());
        prop_assert!(whole.is_err());
        let forged = forged(plan, &mut random);
        if let Ok(server) = Plan::from_bytes(&forged) {
            prop_assert_eq!(server.to_bytes().is_ok(), server.check_all().is_ok());
            let client = ClientPlan::from_bytes(client).expect("a valid plan");
            let _ = use_plans(&Plans { server, client });
        }
    }

    #[test]
    fn changed_client_files_never_panic(seed in any::<u64>()) {
        let mut random = SplitMix(seed);
        let (plan, client) = plans();
        let whole = ClientPlan::from_bytes(&changed(client, &mut random)).and_then(|client| client.check_all());
        prop_assert!(whole.is_err());
        if let Ok(client) = ClientPlan::from_bytes(&forged(client, &mut random)) {
            prop_assert_eq!(client.to_bytes().is_ok(), client.check_all().is_ok());
            let server = Plan::from_bytes(plan).expect("a valid plan");
            let _ = use_plans(&Plans { server, client });
        }
    }

    #[test]
    fn changed_sessions_never_panic(seed in any::<u64>()) {
        let mut random = SplitMix(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("session");
        let server = server(sound());
        let (session, key) = saved();
        std::fs::write(&path, changed(session, &mut random)).expect("it is writable");
        prop_assert!(server.load(&path).is_err());
        std::fs::write(&path, sealed(session, &mut random)).expect("it is writable");
        if let Ok(mut session) = server.load(&path) {
            let client = ClientPlan::from_bytes(&plans().1).expect("a valid plan");
            let client = Client::new(&client, ClearCipher).expect("a client");
            let _ = server.decode(&mut session, client.encrypt(EntryPoint::Decode, &[3]).expect("inputs"), &mut ());
        }
        std::fs::write(&path, changed(key, &mut random)).expect("it is writable");
        prop_assert!(SavedClient::read(&path).is_err());
        std::fs::write(&path, sealed(key, &mut random)).expect("it is writable");
        let _ = SavedClient::read(&path);
    }

    #[test]
    fn changed_tokenizers_never_panic(seed in any::<u64>()) {
        let mut random = SplitMix(seed);
        let text = change_json(&shipped("tokenizer.json"), &mut random);
        if let Ok(tokenizer) = Tokenizer::from_bytes(&text) {
            let _ = tokenizer.prefix();
            let tokens = tokenizer.encode("Once upon a time, é 漢 <s> 12\n", true).unwrap_or_default();
            let mut stream = TextStream::default();
            for token in tokens.into_iter().chain([0, 300, 511, u32::MAX]) {
                let _ = stream.push(token, &tokenizer);
            }
        }
    }

    #[test]
    fn changed_templates_never_panic(seed in any::<u64>()) {
        const TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'user' %}[INST] \
            {{ message['content'].strip() | trim }} [/INST]{% elif loop.first %}{{ raise_exception('x') }}{% else %}\
            {{ bos_token + strftime_now('%d %b') }}{% endif %}{% endfor %}{{ messages[0].content[:3] }}";
        let mut source = TEMPLATE.as_bytes().to_vec();
        let mut random = SplitMix(seed);
        for _ in 0..=random.below(3) {
            change_bytes(&mut source, &mut random);
        }
        let source = String::from_utf8_lossy(&source).into_owned();
        let template = ChatTemplate { source, tokens: [("bos_token".to_owned(), "<s>".to_owned())].into() };
        let _ = chat::render(&template, Some("be kind"), "hello");
    }

    #[test]
    fn changed_configurations_never_panic(seed in any::<u64>()) {
        const FILES: [&str; 4] = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"];
        let mut random = SplitMix(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, shipped_graph()).expect("it is writable");
        for name in FILES {
            std::fs::write(folder.path().join(name), shipped(name)).expect("it is writable");
        }
        let name = random.pick(&FILES);
        let text = change_json(&shipped(name), &mut random);
        std::fs::write(folder.path().join(name), text).expect("it is writable");
        let _ = load(&path, &ImportOptions::default());
    }

    #[test]
    fn changed_graphs_never_panic(seed in any::<u64>()) {
        let mut random = SplitMix(seed);
        let folder = tempfile::tempdir().expect("a folder");
        let path = model(folder.path(), 5 + seed % 3);
        let mut graph = std::fs::read(&path).expect("the model");
        for _ in 0..=random.below(3) {
            graph = change_message(&graph, &mut random);
        }
        std::fs::write(&path, graph).expect("it is writable");
        let _ = load(&path, &ImportOptions::default());
    }
}
