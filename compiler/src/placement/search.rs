//! Exact search over one segment, from its end to its beginning.
//!
//! A value needs the level that its most demanding user needs. Going backwards, all users of a value are seen before the op
//! that makes it, so that the needs of the results give the level at which an op is executed, and with it its time and
//! the needs of its operands. Each candidate may stay as it is, or become a bootstrap, whose operands need the level of
//! a bootstrap's input whatever its results need. Of the alternatives found so far, one that takes no longer than
//! another and needs no higher a level of any value that is still to be made makes the other needless. What is left at
//! the beginning is all that can be best, whatever comes before.

use cachemir_ir::ckks::Levels;

use super::steps::{Segment, Step};

/// What is asked of a value at the end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Demand {
    /// The level that it needs at least.
    pub(super) least: u32,
    /// The level that it can have at most.
    pub(super) most: u32,
}

/// A way through a segment that no other surpasses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Needs of the values from outside, in the segment's order of them.
    pub(super) needs: Vec<u32>,
    /// Time of a call's part in the segment, in nanoseconds.
    pub(super) ns: u64,
    /// Steps that bootstrap, last first.
    pub(super) bootstraps: Vec<usize>,
}

/// A step for which no alternative leaves enough levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    /// The step.
    pub(super) step: usize,
    /// What is missing, where the least is missing.
    pub(super) lack: Lack,
}

/// A level that is needed and cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lack {
    /// The level.
    pub(super) level: u32,
    /// The operand that would have to have it; the step itself where absent.
    pub(super) operand: Option<usize>,
}

#[derive(Clone)]
struct Alternative {
    needs: Vec<u32>,
    ns: u64,
    bootstraps: Vec<usize>,
}

/// All ways through the segment that no other surpasses, the fastest first, for what is asked of its end.
pub(super) fn search(segment: &Segment, demands: &[Demand], levels: Levels) -> Result<Vec<Outcome>, Stuck> {
    let (mut needs, mut most) = (vec![0; segment.values], vec![levels.output; segment.values]);
    for (&value, demand) in segment.ends.iter().zip(demands) {
        (needs[value], most[value]) = (demand.least, demand.most);
    }
    let births = births(segment);
    let mut alternatives = vec![Alternative { needs, ns: 0, bootstraps: Vec::new() }];
    for (index, step) in segment.steps.iter().enumerate().rev() {
        let mut next = Vec::with_capacity(2 * alternatives.len());
        let mut lack = None;
        for alternative in alternatives {
            if step.bootstrap_ns.is_some() {
                let mut with = alternative.clone();
                with.bootstraps.push(index);
                proceed(step, with, true, &most, levels, &mut next, &mut lack);
            }
            proceed(step, alternative, false, &most, levels, &mut next, &mut lack);
        }
        if let (true, Some(lack)) = (next.is_empty(), lack) {
            return Err(Stuck { step: index, lack });
        }
        alternatives = next;
        if step.bootstrap_ns.is_some() {
            unsurpassed(&mut alternatives, |value| births[value] < Some(index));
        }
    }
    unsurpassed(&mut alternatives, |value| births[value].is_none());
    let outcome = |alternative: Alternative| Outcome {
        needs: segment.outer.iter().map(|&(value, _)| alternative.needs[value]).collect(),
        ns: alternative.ns,
        bootstraps: alternative.bootstraps,
    };
    Ok(alternatives.into_iter().map(outcome).collect())
}

fn proceed(
    step: &Step,
    mut alternative: Alternative,
    bootstrap: bool,
    most: &[u32],
    levels: Levels,
    next: &mut Vec<Alternative>,
    lack: &mut Option<Lack>,
) {
    match back(step, &mut alternative.needs, bootstrap, most, levels) {
        Ok((_, ns)) => {
            alternative.ns += ns;
            next.push(alternative);
        }
        Err(found) => *lack = Some(lack.map_or(found, |known| known.min(found))),
    }
}

/// Goes back over a step: the level at which it is executed and its time, or a level that it needs and cannot have.
pub(super) fn back(
    step: &Step,
    needs: &mut [u32],
    bootstrap: bool,
    most: &[u32],
    levels: Levels,
) -> Result<(u32, u64), Lack> {
    let needed = step.results.iter().map(|&result| needs[result]).max().unwrap_or(0);
    let own: Vec<u32> =
        if step.passes() { step.results.iter().map(|&result| needs[result]).collect() } else { Vec::new() };
    let mut raise = |operand: usize, level: u32| {
        needs[operand] = needs[operand].max(level);
        if needs[operand] > most[operand] {
            Err(Lack { level: needs[operand], operand: Some(operand) })
        } else {
            Ok(())
        }
    };
    let lack = |level: u32| Lack { level, operand: None };
    match &step.bootstrap_ns {
        Some(bootstrap_ns) if bootstrap => {
            step.operands.iter().try_for_each(|&operand| raise(operand, levels.bootstrap_input))?;
            Ok((levels.bootstrap_input, *bootstrap_ns.get(needed as usize).ok_or(lack(needed))?))
        }
        _ => {
            let level = needed + step.plain.depth;
            let ns = *step.plain.ns.get(level as usize).ok_or(lack(level))?;
            for (index, &operand) in step.operands.iter().enumerate() {
                raise(operand, own.get(index).copied().unwrap_or(level))?;
            }
            Ok((level, ns))
        }
    }
}

/// By value: the step before which nothing depends on its level any more; none if what comes before the segment does.
fn births(segment: &Segment) -> Vec<Option<usize>> {
    let mut births = vec![None; segment.values];
    for (index, step) in segment.steps.iter().enumerate().rev() {
        for &value in step.operands.iter().chain(&step.results) {
            births[value] = Some(index);
        }
    }
    for &(value, kept) in &segment.outer {
        if kept {
            births[value] = None;
        }
    }
    births
}

/// Removes alternatives that another surpasses, given the values whose levels still matter; the fastest come first.
fn unsurpassed(alternatives: &mut Vec<Alternative>, matters: impl Fn(usize) -> bool) {
    let values = alternatives.first().map_or(0, |alternative| alternative.needs.len());
    let matter: Vec<usize> = (0..values).filter(|&value| matters(value)).collect();
    alternatives.sort_by(|a, b| (a.ns, &a.bootstraps).cmp(&(b.ns, &b.bootstraps)));
    let mut kept: Vec<Alternative> = Vec::new();
    for alternative in alternatives.drain(..) {
        let surpasses =
            |other: &Alternative| matter.iter().all(|&value| other.needs[value] <= alternative.needs[value]);
        if !kept.iter().any(surpasses) {
            kept.push(alternative);
        }
    }
    *alternatives = kept;
}
