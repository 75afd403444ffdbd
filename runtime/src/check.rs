//! What `--check` watches: ranges in the clear, and the precision of what decrypts.

use std::sync::Arc;

use cachemir_ckks::Ciphertext;
use cachemir_hal::Backend;
use cachemir_ir::ckks::CkksOp;
use num_complex::Complex64;

use crate::Error;
use crate::client::{Cipher, SecretCipher};
use crate::executor::{ClearCiphertext, Observer, Site};

/// Relative slack of the range checks, for rounding.
const SLACK: f64 = 1e-6;

/// Error of a slot, relative to its exact value or to 1, from which on the ciphertext holds something else.
const WRONG: f64 = 0.5;

/// An op and where it comes from.
fn place(site: Site<'_>) -> String {
    format!("{} ({} at position {})", site.graph.origin_text(site.op), site.op, site.environment.position)
}

/// Representations that carry the exact slots.
pub trait ClearPart {
    /// The exact slots.
    fn clear(&self) -> &ClearCiphertext;
}

impl ClearPart for ClearCiphertext {
    fn clear(&self) -> &ClearCiphertext {
        self
    }
}

impl<L> ClearPart for (L, ClearCiphertext) {
    fn clear(&self) -> &ClearCiphertext {
        &self.1
    }
}

/// Sees that every slot that enters a polynomial lies in its interval, and every one that a bootstrap keeps within its
/// magnitude.
#[derive(Clone, Debug, Default)]
pub struct RangeCheck {
    violations: usize,
    /// The first value that left the interval of a polynomial, and the first beyond the magnitude of a bootstrap, in words.
    first: [Option<String>; 2],
    bootstraps: usize,
    fullest: f64,
}

impl RangeCheck {
    /// The largest slot of a bootstrap's input so far, as a fraction of the bootstrap's magnitude.
    pub fn fullest_bootstrap(&self) -> f64 {
        self.fullest
    }

    /// Bootstraps seen.
    pub fn bootstraps(&self) -> usize {
        self.bootstraps
    }

    /// Values that left their range.
    pub fn violations(&self) -> usize {
        self.violations
    }

    /// The first value that left its range, in words. Where both do, it is the first that left the interval of a polynomial, which
    /// spoils all that follows, and then the first beyond the magnitude of a bootstrap, which may have had room for it.
    pub fn first(&self) -> Option<String> {
        let first: Vec<&str> = self.first.iter().flatten().map(String::as_str).collect();
        (!first.is_empty()).then(|| first.join("; and of bootstraps: "))
    }

    /// An error if any value left its range.
    pub fn finish(&self) -> Result<(), Error> {
        self.first().map_or(Ok(()), |first| Err(Error::Check { count: self.violations, first }))
    }

    fn violation(&mut self, site: Site<'_>, message: &str) {
        self.violations += 1;
        let kind = usize::from(matches!(site.graph.node(site.op).op, CkksOp::Bootstrap(_)));
        self.first[kind].get_or_insert_with(|| format!("{}: {message}", place(site)));
    }
}

impl<C: ClearPart> Observer<C> for RangeCheck {
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        let Some(operand) = operands.first() else { return Ok(()) };
        let slots = &operand.clear().slots;
        match &site.graph.node(site.op).op {
            CkksOp::Polynomial { polynomial, .. } => {
                let [low, high] = polynomial.interval;
                let slack = SLACK * (high - low);
                let outside =
                    |slot: &&Complex64| !(slot.re >= low - slack && slot.re <= high + slack && slot.im.abs() <= slack);
                if let Some(slot) = slots.iter().find(outside) {
                    self.violation(site, &format!("a slot holds {slot}, outside the polynomial's [{low}, {high}]"));
                }
            }
            CkksOp::Bootstrap(variant) => {
                self.bootstraps += 1;
                let magnitude = f64::from(variant.log2_magnitude).exp2();
                let keep = variant.keep.as_ref().map(|keep| keep.evaluate_slots(site.environment, slots.len()));
                let kept = slots.iter().enumerate().filter(|(index, _)| keep.as_ref().is_none_or(|k| k[*index] != 0));
                let largest = |most: f64, (_, slot): (usize, &Complex64)| {
                    // NaN is passed on.
                    let part = (slot.re.abs().max(slot.im.abs()) + 0.0 * (slot.re + slot.im)) * variant.factor.abs()
                        / magnitude;
                    if part > most || part.is_nan() { part } else { most }
                };
                let fullest = kept.fold(0.0, largest);
                self.fullest = self.fullest.max(fullest);
                if fullest.is_nan() || fullest > 1.0 + SLACK {
                    let message = format!("a slot has {fullest:.3} times the bootstrap's magnitude {magnitude}");
                    self.violation(site, &message);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Sees that every slot of every value is within the bound of its type. Bounds come from calibration and are generous;
/// only what bootstraps and polynomials need of them, which [`RangeCheck`] sees to, decides whether a result is right.
#[derive(Clone, Copy, Debug, Default)]
pub struct BoundCheck;

impl<C: ClearPart> Observer<C> for BoundCheck {
    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        for (value, result) in site.graph.node(site.op).results.iter().zip(results) {
            let (most, bound) = (result.clear().max_abs(), site.graph.ty(*value).max_abs);
            if most.is_nan() || most > bound * (1.0 + SLACK) + SLACK {
                let message = format!("{}: a slot of {value} holds {most}, above the bound {bound}", place(site));
                return Err(Error::execution(message));
            }
        }
        Ok(())
    }
}

/// Precision of the values of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPrecision {
    /// `layer 0`, `layer 1`, … or `head`.
    pub layer: String,
    /// −log2 of the largest error of a slot, relative to the largest slot of its value; the worst value.
    pub precision_bits_min: f64,
    /// −log2 of the mean error of the slots, relative to the largest slot of its value; the mean of all values.
    pub precision_bits_mean: f64,
    values: usize,
}

/// Decrypts every value and compares it with the exact one. Only `--check` and tests make a probe: it needs the client's
/// key.
pub struct Probe<B: Backend> {
    cipher: Arc<SecretCipher<B>>,
    layers: Vec<LayerPrecision>,
    layer: String,
    wrong: usize,
    first_wrong: Option<String>,
}

impl<B: Backend> Probe<B> {
    /// A probe that decrypts with the client's cipher.
    pub fn new(cipher: Arc<SecretCipher<B>>) -> Self {
        Self { cipher, layers: Vec::new(), layer: "head".to_owned(), wrong: 0, first_wrong: None }
    }

    /// Precision by layer, in the order of execution.
    pub fn layers(&self) -> &[LayerPrecision] {
        &self.layers
    }

    /// The worst precision of all values; `None` before the first.
    pub fn precision_bits_min(&self) -> Option<f64> {
        self.layers.iter().map(|layer| layer.precision_bits_min).reduce(f64::min)
    }

    /// The first value that decrypts to something else than the exact one, in words. A value beyond the modulus, or one
    /// that lost all its bits to noise, spoils what is made of it, so that the first tells where to look.
    pub fn first_wrong(&self) -> Option<&str> {
        self.first_wrong.as_deref()
    }

    /// An error if any value decrypts to something else.
    pub fn finish(&self) -> Result<(), Error> {
        match &self.first_wrong {
            None => Ok(()),
            Some(first) => Err(Error::CheckDecrypted { count: self.wrong, first: first.clone() }),
        }
    }

    fn compare(&mut self, site: Site<'_>, found: &[Complex64], exact: &[Complex64]) {
        let wrong = |(found, exact): &(&Complex64, &Complex64)| {
            let error = (*found - *exact).norm();
            error.is_nan() || error > WRONG * exact.norm().max(1.0)
        };
        if let Some((found, exact)) = found.iter().zip(exact).find(wrong) {
            self.wrong += 1;
            self.first_wrong
                .get_or_insert_with(|| format!("{}: a slot holds {found:.4} in place of {exact:.4}", place(site)));
        }
    }

    fn record(&mut self, worst: f64, mean: f64) {
        let index = self.layers.iter().position(|layer| layer.layer == self.layer).unwrap_or_else(|| {
            let layer = self.layer.clone();
            let (precision_bits_min, precision_bits_mean) = (f64::INFINITY, 0.0);
            self.layers.push(LayerPrecision { layer, precision_bits_min, precision_bits_mean, values: 0 });
            self.layers.len() - 1
        });
        let layer = &mut self.layers[index];
        layer.values += 1;
        layer.precision_bits_min = layer.precision_bits_min.min(worst);
        layer.precision_bits_mean += (mean - layer.precision_bits_mean) / layer.values as f64;
    }
}

/// −log2 of the largest and of the mean error, relative to the largest exact slot; `None` where that is all but zero.
pub fn precision_bits(found: &[Complex64], exact: &[Complex64]) -> Option<(f64, f64)> {
    let largest = exact.iter().map(|slot| slot.norm()).fold(0.0, f64::max);
    if largest.is_nan() || largest <= 1e-9 {
        return None;
    }
    let errors: Vec<f64> = found.iter().zip(exact).map(|(found, exact)| (found - exact).norm() / largest).collect();
    let worst =
        errors.iter().fold(0.0, |most: f64, &error| if error.is_nan() { f64::INFINITY } else { most.max(error) });
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    // An exact result has the precision of the doubles that it is compared in.
    let bits = |error: f64| -error.max(f64::EPSILON).log2();
    Some((bits(worst), bits(mean)))
}

impl<B: Backend> Observer<(Ciphertext<B>, ClearCiphertext)> for Probe<B> {
    fn after(&mut self, site: Site<'_>, results: &[&(Ciphertext<B>, ClearCiphertext)]) -> Result<(), Error> {
        let layer = site.graph.node(site.op).layer;
        self.layer = layer.map_or_else(|| "head".to_owned(), |layer| format!("layer {layer}"));
        for (ciphertext, exact) in results.iter().copied() {
            let found = self.cipher.decrypt(ciphertext)?;
            self.compare(site, &found, &exact.slots);
            if let Some((worst, mean)) = precision_bits(&found, &exact.slots) {
                self.record(worst, mean);
            }
        }
        Ok(())
    }
}

/// What was found in the executions that were watched.
#[derive(Debug)]
pub struct Findings {
    /// What entered polynomials and bootstraps; `None` where nobody looked.
    pub ranges: Option<RangeCheck>,
    /// Precision by layer, in the order of execution.
    pub layers: Vec<LayerPrecision>,
    /// The worst precision of all values.
    pub precision_bits_min: Option<f64>,
    /// Whether every value kept its range and decrypts to what it should.
    pub verdict: Result<(), Error>,
}

/// An observer that says what it found.
pub trait Watch<C>: Observer<C> {
    /// What it found so far.
    fn findings(&self) -> Findings;
}

/// Does not look.
impl<C> Watch<C> for () {
    fn findings(&self) -> Findings {
        Findings { ranges: None, layers: Vec::new(), precision_bits_min: None, verdict: Ok(()) }
    }
}

impl<C: ClearPart> Watch<C> for RangeCheck {
    fn findings(&self) -> Findings {
        Findings { ranges: Some(self.clone()), layers: Vec::new(), precision_bits_min: None, verdict: self.finish() }
    }
}

impl<B: Backend> Watch<(Ciphertext<B>, ClearCiphertext)> for (RangeCheck, Probe<B>) {
    fn findings(&self) -> Findings {
        let (ranges, probe) = self;
        Findings {
            ranges: Some(ranges.clone()),
            layers: probe.layers().to_vec(),
            precision_bits_min: probe.precision_bits_min(),
            verdict: ranges.finish().and_then(|()| probe.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cachemir_ir::ckks::{Bootstrap, CkksGraph};
    use cachemir_ir::expression::Environment;
    use cachemir_ir::slots::Chebyshev;

    use super::*;

    /// A polynomial behind a bootstrap whose room is passed is the one to look at.
    #[test]
    fn polynomials_are_named_ahead_of_bootstraps() {
        let bootstrap = Bootstrap { complex: false, keep: None, factor: 1.0, log2_magnitude: 0 };
        let polynomial = Chebyshev { coefficients: vec![0.0, 1.0], interval: [-1.0, 1.0] };
        let ops = [CkksOp::Bootstrap(bootstrap), CkksOp::Polynomial { polynomial, mask: None }];
        let mut graph = CkksGraph::default();
        let ops = ops.map(|op| graph.add_node(op, Vec::new(), Vec::new(), None, None).0);
        let environment = Environment::new(7, 1);
        let first = |seen: &[(usize, f64)]| {
            let mut ranges = RangeCheck::default();
            for &(op, slot) in seen {
                let site = Site { graph: &graph, op: ops[op], environment: &environment };
                ranges.before(site, &[&ClearCiphertext::fresh(&[0.0, slot], 3)]).unwrap();
            }
            (ranges.violations(), ranges.first().unwrap_or_default())
        };
        assert_eq!(first(&[(0, 1.0), (1, -1.0)]), (0, String::new()));
        let (count, room) = first(&[(0, 1.25), (0, 1.5)]);
        assert!(count == 2 && room.contains("1.250 times the bootstrap's magnitude"), "{room}");
        let (count, both) = first(&[(0, 1.25), (1, 3.0)]);
        assert!(count == 2 && both.contains("outside the polynomial's [-1, 1]; and of bootstraps: "), "{both}");
        assert!(both.ends_with(&room), "{both}");
    }

    #[test]
    fn precision_is_relative_to_the_largest_slot() {
        let exact: Vec<Complex64> = [4.0, 0.0, 1.0, 0.0].map(Complex64::from).to_vec();
        let found: Vec<Complex64> = [4.0, 0.5, 1.0, 0.0].map(Complex64::from).to_vec();
        assert_eq!(precision_bits(&found, &exact), Some((3.0, 5.0)));
        assert_eq!(precision_bits(&exact, &exact), Some((52.0, 52.0)));
        assert_eq!(precision_bits(&found, &[Complex64::ZERO; 4]), None);
        let broken = [Complex64::new(f64::NAN, 0.0); 4];
        assert!(precision_bits(&broken, &exact).unwrap().0 < 0.0);
    }
}
