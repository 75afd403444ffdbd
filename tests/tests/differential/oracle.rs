//! What onnxruntime makes of a graph.

use std::path::PathBuf;

use cachemir_tests::SplitMix;
use ort::session::{Session, SessionInputValue, SessionOutputs, builder::GraphOptimizationLevel};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

/// A call for the tokens from one position on, and the logits of its last tokens.
pub(crate) struct Call {
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// A row for each of the last tokens of the call.
    pub(crate) logits: Vec<Vec<f32>>,
}

/// A model in onnxruntime, without optimisations that might change what it computes.
pub(crate) struct Oracle(Session);

impl Oracle {
    /// Loads the library that `ORT_DYLIB_PATH` names.
    pub(crate) fn start() {
        let path = std::env::var_os("ORT_DYLIB_PATH").expect("ORT_DYLIB_PATH names the library of onnxruntime");
        let builder = ort::init_from(PathBuf::from(path)).unwrap_or_else(|error| panic!("{error}"));
        builder.commit();
    }

    /// The model, unless onnxruntime rejects it.
    pub(crate) fn new(model: &[u8]) -> Result<Self, String> {
        let session = Session::builder()
            .map_err(|error| error.to_string())?
            .with_optimization_level(GraphOptimizationLevel::Disable)
            .map_err(|error| error.to_string())?
            .with_intra_threads(1)
            .map_err(|error| error.to_string())?
            .with_log_level(ort::logging::LogLevel::Fatal)
            .map_err(|error| error.to_string())?
            .commit_from_memory(model);
        Ok(Self(session.map_err(|error| error.to_string())?))
    }

    fn cached(&self) -> bool {
        self.0.inputs().iter().any(|input| input.name().starts_with("past"))
    }

    /// Runs the tokens in one call, one by one and in pieces of random lengths; without caches, the first so many of
    /// them. Ways that onnxruntime fails at, and calls whose logits are not numbers, are left out.
    pub(crate) fn run(&mut self, tokens: &[u32], random: &mut SplitMix) -> Result<Vec<Call>, String> {
        let all = tokens.len();
        let mut pieces = Vec::new();
        while pieces.iter().sum::<usize>() < all {
            pieces.push((1 + random.below(9)).min(all - pieces.iter().sum::<usize>()));
        }
        let ways: Vec<Vec<usize>> = if self.cached() {
            vec![vec![all], vec![1; all], pieces]
        } else {
            vec![vec![all], vec![1], vec![2 + random.below(all - 2)], vec![2 + random.below(all - 2)]]
        };
        let (mut calls, mut failure) = (Vec::new(), "its logits are not numbers".to_owned());
        for way in ways {
            match self.call_by_call(tokens, &way) {
                Ok(found) => calls.extend(found),
                Err(error) => failure = error,
            }
        }
        calls.retain(|call| call.logits.iter().flatten().all(|logit| logit.is_finite()));
        if calls.is_empty() { Err(failure) } else { Ok(calls) }
    }

    fn call_by_call(&mut self, tokens: &[u32], counts: &[usize]) -> Result<Vec<Call>, String> {
        let failed = |error: ort::Error| error.to_string();
        let inputs: Vec<(String, ValueType)> =
            self.0.inputs().iter().map(|input| (input.name().to_owned(), input.dtype().clone())).collect();
        let mut caches: Vec<(String, DynValue)> = Vec::new();
        let mut calls = Vec::new();
        let mut first = 0;
        for &count in counts {
            let total = first + count;
            let mut given: Vec<(String, SessionInputValue<'_>)> = Vec::new();
            for (name, ty) in &inputs {
                let integers =
                    |shape: Vec<i64>, values: Vec<i64>| Tensor::from_array((shape, values)).map(Tensor::into_dyn);
                let value = match name.as_str() {
                    "input_ids" => {
                        let ids = tokens[first..total].iter().map(|&token| i64::from(token)).collect();
                        integers(vec![1, count as i64], ids)
                    }
                    "attention_mask" => integers(vec![1, total as i64], vec![1; total]),
                    "position_ids" => integers(vec![1, count as i64], (first as i64..total as i64).collect()),
                    past => match caches.iter().position(|(known, _)| known == past) {
                        Some(place) => Ok(caches.swap_remove(place).1),
                        None => empty_cache(ty),
                    },
                };
                given.push((name.clone(), value.map_err(failed)?.into()));
            }
            let mut outputs = self.0.run(given).map_err(failed)?;
            let logits = logits(&outputs, count)?;
            calls.push(Call { first, count, logits });
            let names: Vec<String> = outputs.keys().map(str::to_owned).collect();
            for name in names.into_iter().filter(|name| name.starts_with("present")) {
                let past = name.replace("present", "past_key_values");
                caches.push((past, outputs.remove(&name).ok_or("an output is missing")?));
            }
            first = total;
        }
        Ok(calls)
    }
}

/// A cache of no tokens: the only symbolic extents are those of the batch, the first, and of the tokens.
fn empty_cache(ty: &ValueType) -> ort::Result<DynValue> {
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = ty else {
        return Err(ort::Error::new("an unknown input"));
    };
    let extent = |(axis, &extent): (usize, &i64)| if axis == 0 { 1 } else { extent.max(0) };
    let shape: Vec<i64> = shape.iter().enumerate().map(extent).collect();
    Tensor::from_array((shape, Vec::<f32>::new())).map(Tensor::into_dyn)
}

fn logits(outputs: &SessionOutputs<'_>, count: usize) -> Result<Vec<Vec<f32>>, String> {
    let value = outputs.get("logits").ok_or("there are no logits")?;
    let (shape, values) = value.try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
    match shape[..] {
        [1, rows, width] if (1..=count as i64).contains(&rows) && width > 0 => {
            Ok(values.chunks_exact(width as usize).map(<[f32]>::to_vec).collect())
        }
        _ => Err(format!("the logits have shape {shape:?}")),
    }
}
