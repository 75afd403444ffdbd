//! Ranges of numbers, which approximations are chosen on.

/// The smallest closed interval that holds all numbers seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest, infinite as long as none was seen.
    pub min: f64,
    /// The largest, minus infinite as long as none was seen.
    pub max: f64,
}

impl Default for Range {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Range {
    /// Widens the range to hold x.
    pub fn include(&mut self, x: f64) {
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Whether no number was seen.
    pub fn is_empty(&self) -> bool {
        self.min > self.max
    }

    /// The largest absolute value.
    pub fn max_abs(&self) -> f64 {
        self.min.abs().max(self.max.abs())
    }

    /// The range with both ends moved outwards by `margin` times its width.
    #[must_use]
    pub fn widened(&self, margin: f64) -> Self {
        let extra = margin * (self.max - self.min);
        Self { min: self.min - extra, max: self.max + extra }
    }

    /// For quantities that are positive by definition: both ends moved outwards by the factor `1 + margin`.
    #[must_use]
    pub fn widened_ratio(&self, margin: f64) -> Self {
        Self { min: self.min / (1.0 + margin), max: self.max * (1.0 + margin) }
    }
}
