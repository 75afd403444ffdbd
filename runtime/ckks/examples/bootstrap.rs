//! A vector that is encrypted, squared until its levels are used up, and bootstrapped.
//!
//! `cargo run --release -p cachemir-ckks --example bootstrap -- [PRESET]`; the preset is `n16`, with 128 bits of security.
// Text is what this program is for.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use cachemir_ckks::circuits::bootstrapping::{Bootstrapper, SlotKind};
use cachemir_ckks::{Decryptor, Encoder, Encryptor, Evaluator, KeyGenerator, Parameters, Ring};
use cachemir_hal::CpuBackend;
use num_complex::Complex64;

/// Squarings ahead of the bootstrap.
const SQUARINGS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let preset = std::env::args().nth(1).unwrap_or("n16".to_owned());
    let ring = Ring::<CpuBackend>::new(Parameters::preset(&preset)?)?;
    let evaluator = Evaluator::new(Encoder::new(ring.clone()));
    let slots = ring.parameters().maximum_slots();
    let bootstrapper = Bootstrapper::new(&evaluator, slots, SlotKind::Real)?;
    let low = bootstrapper.plan().input_level();

    let mut manifest = bootstrapper.key_manifest();
    manifest.require_relinearisation(low + 1..=low + SQUARINGS);
    let generator = KeyGenerator::new(ring.clone());
    let secret = generator.secret_key()?;
    let begin = Instant::now();
    let keys = generator.evaluation_keys(&secret, &manifest, |_made, _total| ControlFlow::Continue(()))?;
    println!("{preset}: {slots} slots; keys made in {:.1} s", begin.elapsed().as_secs_f64());

    let values: Vec<Complex64> = (0..slots).map(|slot| (slot as f64).cos().into()).collect();
    let encryptor = Encryptor::with_secret_key(ring.clone(), &secret);
    let mut x = encryptor.encrypt_slots(evaluator.encoder(), &values, low + SQUARINGS)?;
    for _ in 0..SQUARINGS {
        x = evaluator.square_rescale(&x, &keys)?;
    }
    let entry = bootstrapper.prepare_entry(&evaluator, None, 0)?;
    let begin = Instant::now();
    let fresh = bootstrapper.bootstrap(&evaluator, &keys, &entry, &x)?;
    let seconds = begin.elapsed().as_secs_f64();

    let found = Decryptor::new(ring, &secret).decrypt_slots(evaluator.encoder(), &fresh)?;
    let expected = values.iter().map(|value| value.re.powi(1 << SQUARINGS));
    let error = found.iter().zip(expected).map(|(found, expected)| (found.re - expected).abs()).fold(0.0, f64::max);
    println!(
        "from level {} to {} in {seconds:.2} s, {:.1} bits right at worst",
        x.level(),
        fresh.level(),
        -error.log2()
    );
    Ok(())
}
