//! Scores of predictions, in all and by position.

use serde_json::{Value, json};

/// Most likely tokens that are compared.
const TOP: usize = 5;

/// −ln of the probability that logits give a token.
pub(super) fn surprise(logits: &[f64], token: u32) -> f64 {
    log_probabilities(logits).get(token as usize).map_or(f64::INFINITY, |logarithm| -logarithm)
}

fn log_probabilities(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits.iter().map(|logit| logit - largest - total.ln()).collect()
}

/// How logits differ from exact ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// KL divergence from the exact distribution, in nats.
    kl: f64,
    /// 1 where the most likely token is the same, else 0.
    top1: f64,
    /// Share of the five most likely tokens that are among the five most likely ones.
    top5: f64,
}

/// Compares with exact logits.
pub(super) fn compare(exact: &[f64], found: &[f64]) -> Comparison {
    let (p, q) = (log_probabilities(exact), log_probabilities(found));
    let kl = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
    let best = |logits: &[f64]| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(TOP);
        order
    };
    let (exact, found) = (best(exact), best(found));
    let common = exact.iter().filter(|token| found.contains(token)).count();
    Comparison { kl, top1: f64::from(exact.first() == found.first()), top5: common as f64 / exact.len().max(1) as f64 }
}

/// Sums over some positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    count: usize,
    nats: f64,
    compared: usize,
    exact_nats: f64,
    kl: f64,
    top1: f64,
    top5: f64,
}

impl Sums {
    fn include(&mut self, nats: f64, against: Option<(f64, Comparison)>) {
        self.count += 1;
        self.nats += nats;
        if let Some((exact_nats, Comparison { kl, top1, top5 })) = against {
            self.compared += 1;
            self.exact_nats += exact_nats;
            self.kl += kl;
            self.top1 += top1;
            self.top5 += top5;
        }
    }

    /// Perplexity; with an exact model also its perplexity, the mean divergence, and both agreements.
    fn means(&self) -> (f64, Option<[f64; 4]>) {
        let compared = self.compared as f64;
        let against = (self.compared > 0).then(|| {
            [(self.exact_nats / compared).exp(), self.kl / compared, self.top1 / compared, self.top5 / compared]
        });
        ((self.nats / self.count as f64).exp(), against)
    }

    fn json(&self) -> Value {
        let (perplexity, against) = self.means();
        json!({
            "tokens": self.count,
            "perplexity": perplexity,
            "nats_per_token": self.nats / self.count as f64,
            "exact_perplexity": against.map(|means| means[0]),
            "kl_divergence_nats": against.map(|means| means[1]),
            "top1_agreement": against.map(|means| means[2]),
            "top5_agreement": against.map(|means| means[3]),
        })
    }

    fn row(&self, title: &str) -> String {
        let (perplexity, against) = self.means();
        let against = against.map_or(String::new(), |[exact, kl, top1, top5]| {
            format!(" {exact:>10.4} {kl:>11.2e} {:>8.2} {:>8.2}", 100.0 * top1, 100.0 * top5)
        });
        format!("{title:<12} {:>7} {perplexity:>10.4}{against}\n", self.count)
    }
}

/// Scores of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scores {
    all: Sums,
    /// By the number of binary digits of the position: 0, 1, 2 to 3, 4 to 7, …
    by_position: Vec<Sums>,
}

impl Scores {
    /// Takes in what was said of the token after a position.
    pub(super) fn include(&mut self, position: usize, nats: f64, against: Option<(f64, Comparison)>) {
        let group = (usize::BITS - position.leading_zeros()) as usize;
        if self.by_position.len() <= group {
            self.by_position.resize(group + 1, Sums::default());
        }
        self.by_position[group].include(nats, against);
        self.all.include(nats, against);
    }

    /// Tokens that something was said of.
    pub(super) fn count(&self) -> usize {
        self.all.count
    }

    /// First and last position of each group that has any.
    fn groups(&self) -> impl Iterator<Item = (usize, usize, &Sums)> {
        let groups = self.by_position.iter().enumerate().filter(|(_, sums)| sums.count > 0);
        groups.map(|(group, sums)| ((1_usize << group) / 2, (1_usize << group) - 1, sums))
    }

    /// All scores as a JSON object.
    pub(super) fn json(&self) -> Value {
        let mut object = self.all.json();
        let group = |(first, last, sums): (usize, usize, &Sums)| {
            let mut object = sums.json();
            object["first_position"] = first.into();
            object["last_position"] = last.into();
            object
        };
        object["by_position"] = self.groups().map(group).collect();
        object
    }

    /// All scores as a table.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{:<12} {:>7} {:>10}", "positions", "tokens", "perplexity");
        if self.all.compared > 0 {
            text += &format!(" {:>10} {:>11} {:>8} {:>8}", "exact", "KL (nats)", "top-1 %", "top-5 %");
        }
        text.push('\n');
        for (first, last, sums) in self.groups() {
            text += &sums.row(&if first == last { first.to_string() } else { format!("{first} to {last}") });
        }
        text + &self.all.row("all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_logarithm_of_the_softmax() {
        assert!((surprise(&[0.0, 0.0], 1) - 2.0_f64.ln()).abs() < 1e-12);
        assert!((surprise(&[1000.0, 1000.0 - 3.0_f64.ln()], 1) - 4.0_f64.ln()).abs() < 1e-12);
        assert_eq!(surprise(&[0.0], 3), f64::INFINITY);
    }

    #[test]
    fn logits_are_compared_by_divergence_and_by_their_best_tokens() {
        let exact = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0];
        let same = compare(&exact, &exact.map(|logit| logit + 7.0));
        assert!(same.kl.abs() < 1e-12 && same.top1 == 1.0 && same.top5 == 1.0);
        let mut other = exact;
        other.swap(0, 6);
        let found = compare(&exact, &other);
        assert!(found.kl > 1.0 && found.top1 == 0.0 && (found.top5 - 0.8).abs() < 1e-12, "{found:?}");
        // KL of (3/4, 1/4) against (1/2, 1/2).
        let expected = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((compare(&[3.0_f64.ln(), 0.0], &[0.0, 0.0]).kl - expected).abs() < 1e-12);
    }

    #[test]
    fn positions_are_grouped_by_their_binary_digits() {
        let mut scores = Scores::default();
        for position in 0..5 {
            scores.include(position, 2.0_f64.ln(), Some((0.0, Comparison { kl: 0.5, top1: 1.0, top5: 0.8 })));
        }
        let json = scores.json();
        assert_eq!(json["tokens"], 5);
        assert!((json["perplexity"].as_f64().unwrap() - 2.0).abs() < 1e-12);
        let groups: Vec<[u64; 3]> = json["by_position"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| ["first_position", "last_position", "tokens"].map(|key| group[key].as_u64().unwrap()))
            .collect();
        assert_eq!(groups, [[0, 0, 1], [1, 1, 1], [2, 3, 2], [4, 7, 1]]);
        assert!(scores.text().lines().all(|line| line.len() <= 80), "{}", scores.text());
        assert!(scores.text().contains("2 to 3"));
    }
}
