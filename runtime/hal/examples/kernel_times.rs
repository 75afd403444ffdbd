//! Times of row kernels on every instruction set of this machine, next to `tfhe-ntt`, and of the
//! primitives that dominate a bootstrap on the best one, at ring degree 2^16 with 30 + 7 limbs.
//!
//! `RAYON_NUM_THREADS=1 cargo run --release -p cachemir-hal --example kernel_times`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use cachemir_hal::{Addend, Backend, CpuBackend, HalError, Isa, KeyView, Representative, UniformHalf, primes};
use tfhe_ntt::prime64::Plan;

const DEGREE: usize = 1 << 16;
const LEVELS: usize = 30;
const SPECIAL: usize = 7;

/// Best time of several runs.
fn best(mut f: impl FnMut()) -> Duration {
    f();
    let start = Instant::now();
    let mut shortest = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || (start.elapsed() < Duration::from_secs(1) && runs < 200) {
        let run = Instant::now();
        f();
        shortest = shortest.min(run.elapsed());
        runs += 1;
    }
    shortest
}

fn random(backend: &CpuBackend, polynomials: usize, limbs: &[usize]) -> Vec<u64> {
    let mut state = 1_u64;
    let mut words = Vec::with_capacity(polynomials * limbs.len() * DEGREE);
    for _ in 0..polynomials {
        for limb in limbs {
            words.extend((0..DEGREE).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 13) % backend.moduli()[*limb]
            }));
        }
    }
    words
}

fn report(name: &str, f: &mut dyn FnMut() -> Result<(), HalError>) {
    let time = best(|| f().expect("the shapes fit"));
    println!("{name:<44} {:>12.1} us", time.as_secs_f64() * 1e6);
}

/// The kernels of one row; conversions are counted with all their rows.
fn report_rows(backend: &CpuBackend) -> Result<(), HalError> {
    let upload = |limbs: &[usize]| backend.upload(&random(backend, 1, limbs), 1, limbs.len());
    let mut row = upload(&[0])?;
    let (a, b, six) = (upload(&[0])?, upload(&[0])?, upload(&[0, 1, 2, 3, 4, 5])?);
    let destinations: Vec<usize> = (6..22).collect();
    println!("-- {}", backend.description());
    report("forward NTT", &mut || backend.forward_ntt(&mut row, &[0]));
    report("inverse NTT", &mut || backend.inverse_ntt(&mut row, &[0]));
    report("multiply", &mut || backend.mul_assign(&mut row, &a, &[0]));
    report("multiply-accumulate", &mut || backend.mul_accumulate(&mut row, &a, &b, &[0]));
    report("multiply-accumulate 5 pairs", &mut || backend.mul_accumulate_many(&mut row, &[(&a, &b); 5], &[0]));
    report("scale", &mut || backend.mul_scalar_assign(&mut row, &[12345], &[0]));
    report("automorphism, accumulated", &mut || backend.automorphism_accumulate(&mut row, &a, 5, &[0]));
    report("convert 6 limbs to 16, approximate", &mut || {
        backend.convert_basis(&six, &[0, 1, 2, 3, 4, 5], &destinations, Representative::Approximate).map(drop)
    });
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let moduli = primes::primes_near((1 << 50) - (1 << 28), DEGREE, LEVELS + SPECIAL, &[])?;
    for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512Ifma] {
        match CpuBackend::with_isa(DEGREE, &moduli, isa) {
            Ok(backend) => report_rows(&backend)?,
            Err(error) => println!("-- {error}"),
        }
    }
    let plan = Plan::try_new(DEGREE, moduli[0]).ok_or("tfhe-ntt refuses the modulus")?;
    let mut row = vec![1; DEGREE];
    println!("-- tfhe-ntt");
    report("forward NTT", &mut || {
        plan.fwd(&mut row);
        Ok(())
    });
    report("inverse NTT, not normalised", &mut || {
        plan.inv(&mut row);
        Ok(())
    });

    let backend = CpuBackend::new(DEGREE, &moduli)?;
    let threads = rayon::current_num_threads();
    println!("-- {}, {threads} threads, N = {DEGREE}", backend.description());
    let upload =
        |polynomials, limbs: &[usize]| backend.upload(&random(&backend, polynomials, limbs), polynomials, limbs.len());

    for (levels, dnum) in [(30, 5), (14, 2)] {
        let limbs: Vec<usize> = (0..levels).collect();
        let special: Vec<usize> = (LEVELS..LEVELS + SPECIAL).collect();
        let all = [&limbs[..], &special].concat();
        let positions: Vec<usize> = (0..all.len()).collect();
        println!("-- {levels} + {SPECIAL} limbs, {dnum} digits");
        let ciphertext = upload(2, &limbs)?;
        let (key_b, key_a) = (upload(dnum, &all)?, upload(dnum, &all)?);
        let key = KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions };
        let digits = backend.decompose(&ciphertext, 1, &limbs, &special, SPECIAL)?;
        let product = backend.inner_product(&digits, &key, None, 1, &all)?;
        let mut acc = backend.zeros(2, all.len())?;
        report("decompose", &mut || backend.decompose(&ciphertext, 1, &limbs, &special, SPECIAL).map(drop));
        report("inner product", &mut || backend.inner_product(&digits, &key, None, 1, &all).map(drop));
        let seeded = KeyView { b: &key_b, a: UniformHalf::Seeded(&[1; 32]), positions: key.positions.clone() };
        report("inner product, half of the key from its seed", &mut || {
            backend.inner_product(&digits, &seeded, None, 1, &all).map(drop)
        });
        report("inner product, rotated, accumulated", &mut || {
            backend.inner_product_accumulate(&mut acc, &digits, &key, None, 5, &all)
        });
        report("mod down, 2 polynomials", &mut || backend.mod_down(&product, &limbs, &special).map(drop));
        report("rescale, 2 polynomials", &mut || backend.rescale(&ciphertext, &limbs).map(drop));
        report("key switch (decompose, inner product, down)", &mut || {
            let digits = backend.decompose(&ciphertext, 1, &limbs, &special, SPECIAL)?;
            let product = backend.inner_product(&digits, &key, None, 1, &all)?;
            backend.mod_down(&product, &limbs, &special).map(drop)
        });
        let factors = vec![1; limbs.len()];
        let addend = Addend { source: &ciphertext, polynomials: 1, factors: &factors };
        report("rotation of a ciphertext", &mut || {
            let digits = backend.decompose(&ciphertext, 1, &limbs, &special, SPECIAL)?;
            let product = backend.inner_product(&digits, &key, Some(&addend), 5, &all)?;
            backend.mod_down(&product, &limbs, &special).map(drop)
        });
        report("tensor", &mut || backend.tensor(&ciphertext, &ciphertext, &limbs).map(drop));
    }
    Ok(())
}
