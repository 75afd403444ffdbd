//! What a graph's inputs and outputs are for, and what inputs hold once the graph is specialised.

use std::sync::Arc;

use super::dense::{Dense, Kind};
use super::evaluate::axis_index;
use super::infer;
use super::onnx::{Name, OnnxGraph, OnnxInput, OnnxNode};
use super::specialise::{Signal, Sizes, Specialised, Value};
use crate::Error;

/// What an additive mask adds to hide a token.
const HIDDEN: f64 = -1e9;

/// Where the tokens of a cache lie: after the heads, `[batch, heads, tokens, dim]`, or ahead of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheLayout {
    HeadsFirst,
    TokensFirst,
}

/// Role of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The new tokens, `[batch, tokens]`.
    Tokens,
    /// Which tokens there are, `[batch, tokens so far]`: 1 for each.
    Padding,
    /// Which tokens each new token sees, `[batch, (heads,) new tokens, tokens so far]`: 0 or true for those.
    Mask,
    /// The new tokens' positions.
    Positions,
    /// Past keys or values.
    Past(CacheLayout),
    /// A number of which the last token's logits do not depend, or that follows from the lengths.
    Number(Number),
}

/// What a scalar input says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// Of how many of the last tokens logits are computed.
    KeptLogits,
    /// Number of past tokens.
    Past,
    /// Number of new tokens.
    Sequence,
    /// Number of tokens so far.
    Total,
}

/// The role of an input, by its kind, rank, name and use.
pub(super) fn role(graph: &OnnxGraph, input: &OnnxInput) -> Result<Role, Error> {
    let name = input.name.to_lowercase();
    let named = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let unknown = |what: &str| Error::Interface { message: format!("input {} {what}", described(input)) };
    if name == "use_cache_branch" {
        return Err(unknown(
            "selects one of two decoders: this is a merged decoder (`decoder_model_merged.onnx`); take \
             `decoder_with_past_model.onnx` beside it, or export with an optimum that writes one `model.onnx`",
        ));
    }
    match (input.kind, input.shape.len()) {
        (Kind::Int, 2) if named(&["input_id", "token"]) && !named(&["type"]) || is_looked_up(graph, input) => {
            Ok(Role::Tokens)
        }
        (Kind::Int, 2) if named(&["token_type"]) => {
            Err(unknown("tells sentences apart: this is an encoder, which sees the whole text, and not a decoder"))
        }
        (Kind::Bytes, _) => Err(unknown("is no input of a decoder")),
        (_, 2) if named(&["mask"]) => Ok(Role::Padding),
        (_, 3 | 4) if named(&["mask"]) => Ok(Role::Mask),
        (Kind::Int, 1 | 2) if named(&["position"]) => Ok(Role::Positions),
        (Kind::F32 | Kind::F64, 4) => Ok(Role::Past(cache_layout(graph, input)?)),
        (Kind::F32 | Kind::F64, 3 | 5) if named(&["past", "cache", "key", "value"]) => {
            Err(unknown("is a cache of another shape than [batch, heads, tokens, dim] or [batch, tokens, heads, dim]"))
        }
        (Kind::Int, 0 | 1) if named(&["logits_to_keep"]) => Ok(Role::Number(Number::KeptLogits)),
        (Kind::Int, 0 | 1) if named(&["total_seq"]) => Ok(Role::Number(Number::Total)),
        (Kind::Int, 0 | 1) if named(&["past_seq", "past_len"]) => Ok(Role::Number(Number::Past)),
        (Kind::Int, 0 | 1) if named(&["seq"]) => Ok(Role::Number(Number::Sequence)),
        _ => Err(unknown(
            "is none of a decoder's: tokens (input_ids), attention mask, positions, past keys and values, number of \
             logits to keep",
        )),
    }
}

/// Checks that no length but that of single steps is fixed, and says whether there are caches, and whether a call takes
/// several tokens.
pub(super) fn interface(graph: &OnnxGraph) -> Result<(bool, bool), Error> {
    let (mut tokens, mut cached, mut several) = (false, false, true);
    let fixed = |input: &OnnxInput, what: &str, length: usize| Error::Interface {
        message: format!(
            "input `{}` has a fixed length of {length} {what}; export the model with dynamic axes for the tokens of \
             input_ids, attention_mask, position_ids and of the caches",
            input.name
        ),
    };
    for input in &graph.inputs {
        match role(graph, input)? {
            Role::Tokens => {
                tokens = true;
                several = input.shape[1] != Some(1);
                if let Some(length) = input.shape[1].filter(|&length| length > 1) {
                    return Err(fixed(input, "new tokens", length));
                }
            }
            Role::Past(layout) => {
                cached = true;
                if let Some(length) = input.shape[if layout == CacheLayout::HeadsFirst { 2 } else { 1 }] {
                    return Err(fixed(input, "past tokens", length));
                }
            }
            Role::Padding | Role::Mask => {
                if let Some(length) = input.shape.last().copied().flatten().filter(|&length| length > 1) {
                    return Err(fixed(input, "tokens", length));
                }
            }
            Role::Positions | Role::Number(_) => {}
        }
    }
    if !tokens {
        return Err(Error::Interface { message: "there is no input `input_ids`".to_owned() });
    }
    if !cached && !several {
        return Err(Error::Interface {
            message: "the graph takes one token and no past keys and values: its length is fixed to one token; export \
                      the model with dynamic axes"
                .to_owned(),
        });
    }
    Ok((cached, several))
}

/// What an input holds at the given lengths. `past_shape` gives key-value heads and head dimension of caches whose shape
/// in the file is symbolic.
pub(super) fn value(
    graph: &OnnxGraph,
    input: &OnnxInput,
    Sizes { past, sequence }: Sizes,
    past_shape: Option<[usize; 2]>,
) -> Result<Value, Error> {
    let total = past + sequence;
    let constant =
        |shape: Vec<usize>, values: Vec<f64>| Value::Constant(Arc::new(Dense::from_f64(shape, input.kind, values)));
    Ok(match role(graph, input)? {
        Role::Tokens => Value::Signal(Signal::whole(input.value, vec![1, sequence], Kind::Int)),
        Role::Padding => constant(vec![1, total], vec![1.0; total]),
        Role::Mask => {
            let mut shape = vec![1; input.shape.len()];
            let rank = shape.len();
            (shape[rank - 2], shape[rank - 1]) = (sequence, total);
            if let (4, Some(heads)) = (rank, input.shape[1]) {
                shape[1] = heads;
            }
            let (seen, hidden) = if input.kind.is_float() { (0.0, HIDDEN) } else { (1.0, 0.0) };
            let heads = if rank == 4 { shape[1] } else { 1 };
            let entry = |index: usize| if index % total <= past + index / total % sequence { seen } else { hidden };
            constant(shape, (0..heads * sequence * total).map(entry).collect())
        }
        Role::Positions => {
            let shape = if input.shape.len() == 1 { vec![sequence] } else { vec![1, sequence] };
            constant(shape, (past..total).map(|position| position as f64).collect())
        }
        Role::Number(number) => {
            let number = match number {
                Number::KeptLogits => 1,
                Number::Past => past,
                Number::Sequence => sequence,
                Number::Total => total,
            };
            constant(vec![1; input.shape.len()], vec![number as f64])
        }
        Role::Past(layout) => {
            let (heads, tokens) = if layout == CacheLayout::HeadsFirst { (1, 2) } else { (2, 1) };
            let extent = |axis: usize, known: usize| input.shape[axis].or(past_shape.map(|shape| shape[known]));
            let (Some(head_count), Some(dim)) = (extent(heads, 0), extent(3, 1)) else {
                let message = format!(
                    "heads and head dimension of input {} are not known; caches are [batch, heads, tokens, dim]",
                    described(input)
                );
                return Err(Error::Interface { message });
            };
            let mut shape = vec![1, 0, 0, dim];
            (shape[heads], shape[tokens]) = (head_count, past);
            infer::check_size(&shape).map_err(|message| Error::Interface { message })?;
            Value::Signal(Signal::whole(input.value, shape, input.kind))
        }
    })
}

/// The output that holds the logits: the one so named, the only one that ends so, or the only one beside the caches. If
/// no name tells, outputs are the logits and then a cache for each past input.
pub(super) fn logits(graph: &OnnxGraph) -> Result<&(String, Name), Error> {
    let outputs = || graph.outputs.iter();
    if let Some(exact) = outputs().find(|(name, _)| name.eq_ignore_ascii_case("logits")) {
        return Ok(exact);
    }
    let mut candidates: Vec<&(String, Name)> =
        outputs().filter(|(name, _)| name.to_lowercase().ends_with("logits")).collect();
    if candidates.is_empty() {
        candidates = outputs().filter(|(name, _)| !is_cache(name)).collect();
        let pasts = graph.inputs.iter().filter(|input| matches!(role(graph, input), Ok(Role::Past(_)))).count();
        if candidates.len() == graph.outputs.len() && candidates.len() == pasts + 1 {
            candidates.truncate(1);
        }
    }
    let message = match candidates.as_slice() {
        [only] => return Ok(only),
        [] => "no output holds logits: each of them is named like a cache, or there is none".to_owned(),
        several => {
            let names: Vec<String> = several.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!(
                "which output holds the logits is not told by the names of {}; name it `logits`, or export the model \
                 without the others",
                names.join(", ")
            )
        }
    };
    Err(Error::Interface { message })
}

/// Whether an output is named like one that hands on keys or values.
fn is_cache(name: &str) -> bool {
    let name = name.to_lowercase();
    ["present", "past", "cache", "key", "value"].iter().any(|part| name.contains(part))
}

/// A past input, and the output that becomes it in the next call.
pub(super) struct Present<'g> {
    pub(super) past: Name,
    pub(super) layout: CacheLayout,
    /// The output's name and value.
    pub(super) output: &'g str,
    pub(super) value: Name,
}

/// Each past input with the output that becomes it in the next call: the one of the same name but for what all inputs,
/// and all outputs, have in common at both ends; in the order of the lists, if the names do not tell.
pub(super) fn presents<'g>(graph: &'g OnnxGraph) -> Result<Vec<Present<'g>>, Error> {
    let (_, logits) = logits(graph)?;
    let past = |input| match role(graph, input) {
        Ok(Role::Past(layout)) => Some((input, layout)),
        _ => None,
    };
    let pasts: Vec<(&OnnxInput, CacheLayout)> = graph.inputs.iter().filter_map(past).collect();
    let named = |output: &&(String, Name)| output.1 != *logits && is_cache(&output.0);
    let mut outputs: Vec<&(String, Name)> = graph.outputs.iter().filter(named).collect();
    if outputs.is_empty() {
        outputs = graph.outputs.iter().filter(|output| output.1 != *logits).collect();
    }
    if outputs.len() < pasts.len() {
        let message = format!(
            "{} inputs hold past keys and values, but {} outputs hand them on to the next call; export the model with an \
             output (`present…`) for each",
            pasts.len(),
            outputs.len()
        );
        return Err(Error::Interface { message });
    }
    let own = distinct_parts(pasts.iter().map(|(input, _)| input.name.as_str()).collect());
    let theirs = distinct_parts(outputs.iter().map(|(name, _)| name.as_str()).collect());
    let by_name = own.iter().map(|part| theirs.iter().position(|other| other == part));
    let order = by_name.collect::<Option<Vec<usize>>>().unwrap_or_else(|| (0..pasts.len()).collect());
    let pairs = pasts.iter().zip(order.into_iter().map(|place| outputs[place]));
    let present = |(&(input, layout), (output, value)): (&(&OnnxInput, _), &'g (String, Name))| Present {
        past: input.value,
        layout,
        output,
        value: *value,
    };
    Ok(pairs.map(present).collect())
}

/// Names without what all of them begin and end with.
fn distinct_parts(names: Vec<&str>) -> Vec<&str> {
    let Some(&first) = names.first() else { return names };
    let starts = first.char_indices().map(|(at, letter)| at + letter.len_utf8());
    let alike = starts.take_while(|&end| names.iter().all(|name| name.starts_with(&first[..end])));
    let start = alike.last().unwrap_or(0);
    let names: Vec<&str> = names.into_iter().map(|name| &name[start..]).collect();
    let first = names[0];
    let mut ends = first.char_indices().map(|(at, _)| &first[at..]);
    let end = ends.find(|end| names.iter().all(|name| name.ends_with(end))).map_or(0, str::len);
    names.into_iter().map(|name| &name[..name.len() - end]).collect()
}

/// Key-value heads and head dimension, for graphs whose inputs do not say them: as the attention of the first layer, or
/// what it appends to its cache, has them.
pub(super) fn past_shape(graph: &OnnxGraph) -> Option<[usize; 2]> {
    let caches = graph.inputs.iter().filter(|input| matches!(role(graph, input), Ok(Role::Past(_))));
    let of_input = |input: &OnnxInput, guess: [usize; 2]| {
        let Consumer { node, axes, .. } = consumer(graph, input.value)?;
        let shape_of = |name: Name| {
            let sizes = Sizes { past: 1, sequence: 1 };
            let specialised = Specialised::new(graph, sizes, Some(guess), Some(&[name])).ok()?;
            Some(specialised.value(name).shape().to_vec()).filter(|shape| !shape.is_empty())
        };
        if node.op_type == GROUPED {
            let extent = |name: &str| usize::try_from(node.int(name)?).ok();
            let (heads, kv_heads) = (extent("num_heads")?, extent("kv_num_heads")?);
            let parts = if node.input(1).is_none() { heads + 2 * kv_heads } else { heads };
            return Some([kv_heads, shape_of(node.input(0)?)?.last()?.checked_div(parts)?]);
        }
        let new =
            shape_of(node.input(1)?).filter(|shape| shape.len() == 4 && shape.iter().all(|&extent| extent > 0))?;
        let tokens = axis_index(node.int("axis")?, 4).ok()?;
        let dim = axes.iter().position(|&axis| axis == 3)?;
        let heads = (1..4).find(|&axis| axis != tokens && axis != dim)?;
        Some([new[heads], new[dim]])
    };
    // A graph may read other extents of a cache: what it says must not depend on the guess of these.
    caches.into_iter().find_map(|input| {
        let found = of_input(input, [1, 1])?;
        (of_input(input, found)? == found).then_some(found)
    })
}

const GROUPED: &str = "com.microsoft::GroupQueryAttention";

/// The first operation that computes with an input.
struct Consumer<'g> {
    node: &'g OnnxNode,
    /// The axis of the input that each axis of the operand is.
    axes: Vec<usize>,
}

/// The first node that appends to a cache or attends to it, past transpositions.
fn consumer(graph: &OnnxGraph, name: Name) -> Option<Consumer<'_>> {
    let mut pending = vec![(name, vec![0, 1, 2, 3])];
    while let Some((name, axes)) = pending.pop() {
        for node in graph.nodes.iter().filter(|node| node.inputs.contains(&Some(name))) {
            let moved = match node.op_type.as_str() {
                "Concat" | GROUPED => return Some(Consumer { node, axes }),
                "Identity" | "Cast" => axes.clone(),
                "Transpose" => {
                    let order = node.ints("perm")?.iter().map(|&axis| axes.get(usize::try_from(axis).ok()?).copied());
                    order.collect::<Option<_>>()?
                }
                _ => continue,
            };
            pending.extend(node.outputs.first().copied().flatten().map(|output| (output, moved)));
        }
    }
    None
}

/// On which axis a cache grows: where it is appended to, or else the one that is symbolic.
fn cache_layout(graph: &OnnxGraph, input: &OnnxInput) -> Result<CacheLayout, Error> {
    let axis = match consumer(graph, input.value) {
        Some(Consumer { node, axes }) if node.op_type == "Concat" => {
            node.int("axis").and_then(|axis| axis_index(axis, axes.len()).ok()).and_then(|axis| axes.get(axis).copied())
        }
        Some(_) => Some(2),
        None => match (input.shape[1], input.shape[2]) {
            (None, Some(_)) => Some(1),
            _ => Some(2),
        },
    };
    match axis {
        Some(1) => Ok(CacheLayout::TokensFirst),
        Some(2) => Ok(CacheLayout::HeadsFirst),
        _ => Err(Error::Interface {
            message: format!(
                "input {} is a cache whose tokens lie on neither axis 1 nor 2; caches are [batch, heads, tokens, dim] or \
                 [batch, tokens, heads, dim]",
                described(input)
            ),
        }),
    }
}

/// Whether rows of a stored matrix are looked up by the input: it holds tokens, whatever its name.
fn is_looked_up(graph: &OnnxGraph, input: &OnnxInput) -> bool {
    let of_weights = |node: &OnnxNode| {
        let rows = node.input(0).and_then(|table| graph.initializers.get(&table));
        rows.is_some_and(|rows| rows.shape.len() == 2 && rows.kind.is_float())
    };
    input.kind == Kind::Int
        && input.shape.len() == 2
        && !input.name.to_lowercase().contains("position")
        && !input.name.to_lowercase().contains("type")
        && graph
            .nodes
            .iter()
            .any(|node| node.op_type == "Gather" && node.input(1) == Some(input.value) && of_weights(node))
}

/// An input's name, kind and shape in words.
fn described(input: &OnnxInput) -> String {
    let kind = match input.kind {
        Kind::F32 | Kind::F64 => "floats",
        Kind::Int => "integers",
        Kind::Bool => "truth values",
        Kind::Bytes => "bytes",
    };
    let extents = input.shape.iter().map(|extent| extent.map_or_else(|| "?".to_owned(), |extent| extent.to_string()));
    format!("`{}` ({kind} [{}])", input.name, extents.collect::<Vec<_>>().join(", "))
}
