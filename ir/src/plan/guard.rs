//! What a client knows about the outputs of a step that the calibrated model can give.

/// Bounds on a step's logits; the compiler computes them, the client checks them before it chooses a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Smallest and largest logit of any token.
    pub logits: [f64; 2],
    /// Slots of the outputs that are zero, counted as those of the logits.
    pub zeros: Vec<u32>,
    /// Whether the logits are those of a normalised vector.
    pub norm: Option<NormCheck>,
    /// By how much an error in all entries of the packed residual stream is greater in a logit, at most: √(h/m)·√d·‖A_i‖ for
    /// rows A_i of the head with the last norm's factors, and the last norm's polynomial on mean squares from m to 2·h.
    pub noise_gain: f64,
}

/// [`Guard::noise_gain`] relative to the largest logit where nothing is known of the head.
const USUAL_GAIN: f64 = 32.0;

impl Guard {
    /// A guard that knows bounds on the logits only.
    pub fn of_logits(low: f64, high: f64) -> Self {
        let noise_gain = (USUAL_GAIN * low.abs().max(high.abs())).min(f64::MAX);
        Self { logits: [low, high], zeros: Vec::new(), norm: None, noise_gain }
    }
}

/// How to read the length of the output head's input off some logits.
///
/// The logits are `W x` for an x of width d and length about √d. For the d tokens S, `W_S = L Q` with L lower triangular
/// and Q orthogonal, so that `z = L⁻¹ y_S = Q x` has the length of x and gives all other logits too.
#[derive(Clone, Debug, PartialEq)]
pub struct NormCheck {
    /// The d tokens S.
    pub tokens: Vec<u32>,
    /// L by rows, without the zeros: d(d + 1)/2 entries.
    pub triangle: Vec<f32>,
    /// Smallest and largest `‖z‖/√d`.
    pub length: [f64; 2],
    /// Standard deviation of `‖z‖/√d` for independent errors of logits with standard deviation one.
    pub gain: f64,
    /// How other logits follow from z.
    pub others: Others,
    /// Largest deviation of another logit from what z says, relative to the largest logit.
    pub deviation: f64,
    /// Standard deviation of such a deviation for independent errors of logits with standard deviation one.
    pub deviation_gain: f64,
}

/// Logits as functions of z.
#[derive(Clone, Debug, PartialEq)]
pub enum Others {
    /// Where the output head is the embedding E times factors γ: all logits are `E M z` with the d×d matrix
    /// `M = diag(γ) Qᵀ`, row-major.
    Embedding(Vec<f32>),
    /// Some further tokens, and the rows `W_token Qᵀ` for them, d entries each.
    Rows(Vec<u32>, Vec<f32>),
}

/// What [`NormCheck::read`] finds in logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// `‖z‖/√d`.
    pub length: f64,
    /// Largest deviation of another logit from what z says, relative to the largest logit.
    pub deviation: f64,
}

impl NormCheck {
    /// Reads length and consistency off the logits of all tokens. `embedding` is the model's, `[vocabulary][d]`. NaN
    /// comes back as NaN.
    pub fn read(&self, logits: &[f64], embedding: &[f32]) -> Reading {
        let width = self.tokens.len();
        let mut z: Vec<f64> = Vec::with_capacity(width);
        let mut row = self.triangle.as_slice();
        for token in &self.tokens {
            let (left, rest) = row.split_at(z.len());
            let diagonal = f64::from(rest[0]);
            z.push((logits[*token as usize] - dot(left, &z)) / diagonal);
            row = &rest[1..];
        }
        let deviations: Vec<f64> = match &self.others {
            Others::Rows(tokens, rows) => {
                let rows = rows.chunks_exact(width).zip(tokens);
                rows.map(|(row, token)| dot(row, &z) - logits[*token as usize]).collect()
            }
            Others::Embedding(matrix) => {
                let turned: Vec<f64> = matrix.chunks_exact(width).map(|row| dot(row, &z)).collect();
                let rows = embedding.chunks_exact(width).zip(logits);
                rows.map(|(row, logit)| dot(row, &turned) - logit).collect()
            }
        };
        let squares: f64 = z.iter().map(|entry| entry * entry).sum();
        // Beside logits that are all zero, nothing deviates by a part of them.
        let size = largest(logits).max(f64::MIN_POSITIVE);
        Reading { length: (squares / width as f64).sqrt(), deviation: largest(&deviations) / size }
    }
}

fn dot(row: &[f32], vector: &[f64]) -> f64 {
    row.iter().zip(vector).map(|(&a, b)| f64::from(a) * b).sum()
}

/// The largest absolute value; NaN if there is one.
fn largest(numbers: &[f64]) -> f64 {
    let more =
        |most: f64, number: &f64| if number.is_nan() || most.is_nan() { f64::NAN } else { most.max(number.abs()) };
    numbers.iter().fold(0.0, more)
}
