//! How long things take, and the unit that times are given in.

use std::time::Instant;

use cachemir_ckks::CkksError;
use rayon::prelude::*;
use tfhe_ntt::prime64::Plan;

/// Ring degree of the unit.
const UNIT_DEGREE: usize = 1 << 16;
/// The largest prime below 2^50 that is 1 modulo 2^17.
const UNIT_PRIME: u64 = 1_125_899_903_827_969;
/// Words of the stream that is read to measure memory: far more than caches hold.
const STREAM_WORDS: usize = 1 << 26;

/// A row transformed by `tfhe-ntt`, the unit of all reports: a forward number-theoretic transform of degree 2^16 modulo a
/// 50-bit prime on one thread.
pub(crate) struct Unit {
    plan: Plan,
    shortest_ns: f64,
}

/// Shortest of many times of a forward transform of this degree and prime by `tfhe-ntt` on one thread, in nanoseconds: the
/// unit, for rings of other degrees as well. `None` where it has no plan, which does not happen with the primes of a ring.
pub(crate) fn ntt_ns(degree: usize, prime: u64) -> Option<f64> {
    const ROWS: usize = 16;
    const RUNS: usize = 25;
    Some(shortest_ns(&Plan::try_new(degree, prime)?, degree, ROWS, RUNS))
}

/// What a machine that others use as well can do. Rows differ by a third in how their pages share the caches, so
/// several are tried.
fn shortest_ns(plan: &Plan, degree: usize, rows: usize, runs: usize) -> f64 {
    let mut words = vec![1; rows * degree];
    let mut shortest = f64::INFINITY;
    for row in words.chunks_mut(degree) {
        for _ in 0..runs {
            let begin = Instant::now();
            plan.fwd(row);
            shortest = shortest.min(begin.elapsed().as_secs_f64() * 1e9);
        }
    }
    shortest
}

impl Unit {
    /// `None` where `tfhe-ntt` has no plan, which does not happen with this prime.
    pub(crate) fn new() -> Option<Self> {
        const ROWS: usize = 64;
        const RUNS: usize = 200;
        let plan = Plan::try_new(UNIT_DEGREE, UNIT_PRIME)?;
        let shortest_ns = shortest_ns(&plan, UNIT_DEGREE, ROWS, RUNS);
        Some(Self { plan, shortest_ns })
    }

    /// Shortest time so far, in nanoseconds.
    pub(crate) fn ns(&self) -> f64 {
        self.shortest_ns
    }

    /// Seconds that the current pool's threads take for independent transforms and for reading a stream from memory, each
    /// thread its share: what any program could gain from them.
    pub(crate) fn independent_work_seconds(&self) -> f64 {
        const ROWS: usize = 512;
        let stream = vec![1_u64; STREAM_WORDS];
        let share = STREAM_WORDS / ROWS;
        let begin = Instant::now();
        let sum: u64 = stream
            .par_chunks(share)
            .map_init(
                || vec![1; UNIT_DEGREE],
                |row, words| {
                    self.plan.fwd(row);
                    words.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word))
                },
            )
            .reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(sum);
        begin.elapsed().as_secs_f64()
    }
}

/// Median time of an operation in nanoseconds, after one run that is not counted: at least three runs, and as many as fit
/// into a second.
pub(crate) fn median_ns<T>(mut operation: impl FnMut() -> Result<T, CkksError>) -> Result<f64, CkksError> {
    const SHORTEST: usize = 3;
    const LONGEST: usize = 25;
    operation()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < SHORTEST || (times.len() < LONGEST && begin.elapsed().as_secs_f64() < 1.0) {
        let (ns, result) = once_ns(&mut operation)?;
        drop(result);
        times.push(ns);
    }
    Ok(median(&mut times))
}

/// Time of an operation in nanoseconds, and its result.
pub(crate) fn once_ns<T>(operation: impl FnOnce() -> Result<T, CkksError>) -> Result<(f64, T), CkksError> {
    let begin = Instant::now();
    let result = operation()?;
    Ok((begin.elapsed().as_secs_f64() * 1e9, result))
}

/// The middle one, or the upper of both.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_a_time() {
        let unit = Unit::new().unwrap();
        assert!(unit.ns() > 1e3 && unit.ns() < 1e9, "{} ns", unit.ns());
        assert!(unit.independent_work_seconds() > 0.0);
    }

    #[test]
    fn a_median_ignores_order_and_outliers() {
        assert_eq!(median(&mut [5.0, 1.0, 900.0]), 5.0);
        assert_eq!(median(&mut []), 0.0);
    }
}
