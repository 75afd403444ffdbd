//! Checks a file's protobuf structure before anything is allocated for it.
//!
//! A message of a few bytes can stand for hundreds in memory, and messages nest. The walk here reads only tags and
//! lengths, adds up what the decoded messages will take, and needs no memory itself but for a stack of bounded depth.

/// Deepest nesting of messages: 21 subgraphs within each other.
const DEEPEST: usize = 64;

/// What decoding may take, in bytes, beyond a multiple of the file's length.
const FIXED_BUDGET: u64 = 512 << 20;

/// Bytes in memory for each byte of the file: whole numbers of a byte each become 8.
const BUDGET_PER_BYTE: u64 = 8;

/// What a field or message takes besides its contents: more than any of the generated structures.
const MESSAGE_BYTES: u64 = 512;
const FIELD_BYTES: u64 = 32;

/// Messages that hold others; all else counts as a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Function,
    Training,
    ValueInfo,
    Type,
    TypeContent,
    Shape,
    Annotation,
    Device,
    Sharding,
    ShardedDim,
    Leaf,
}

/// The kind of message in a field of another; `None` for numbers, texts and bytes.
fn child(kind: Kind, field: u64) -> Option<Kind> {
    Some(match (kind, field) {
        (Kind::Model, 7) | (Kind::Attribute, 6 | 11) | (Kind::Training, 1 | 2) => Kind::Graph,
        (Kind::Model, 20) => Kind::Training,
        (Kind::Model, 25) => Kind::Function,
        (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
        (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::SparseTensor, 1 | 2) => Kind::Tensor,
        (Kind::Graph, 15) | (Kind::Attribute, 22 | 23) => Kind::SparseTensor,
        (Kind::Graph, 11..=13) | (Kind::Function, 12) => Kind::ValueInfo,
        (Kind::Graph, 14) => Kind::Annotation,
        (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
        (Kind::Node, 10) => Kind::Device,
        (Kind::ValueInfo, 2) | (Kind::Attribute, 14 | 15) | (Kind::TypeContent, 1) => Kind::Type,
        (Kind::Type, 1 | 4 | 5 | 7 | 8 | 9) => Kind::TypeContent,
        // Of a tensor type the shape, of a map type the type of its values.
        (Kind::TypeContent, 2) => Kind::Shape,
        (Kind::Device, 2) => Kind::Sharding,
        (Kind::Sharding, 4) => Kind::ShardedDim,
        (Kind::Sharding, 3)
        | (Kind::ShardedDim | Kind::Annotation, 2)
        | (Kind::Shape, 1)
        | (Kind::Model, 8 | 14 | 26)
        | (Kind::Graph, 16)
        | (Kind::Node, 9)
        | (Kind::Tensor, 3 | 13 | 16)
        | (Kind::Function, 9 | 14)
        | (Kind::Training, 3 | 4)
        | (Kind::ValueInfo, 4) => Kind::Leaf,
        _ => return None,
    })
}

/// What a field without messages in it takes in memory.
fn content(kind: Kind, field: u64, length: u64) -> u64 {
    match (kind, field) {
        // Raw bytes stay where they are.
        (Kind::Tensor, 9) => 0,
        // Packed whole numbers.
        (Kind::Tensor, 1 | 5 | 7 | 11) | (Kind::SparseTensor, 3) | (Kind::Attribute, 8) => length.saturating_mul(8),
        _ => length,
    }
}

/// Refuses a file whose structure is broken or would take too much memory; returns how many bytes may be taken beyond
/// those of its messages.
pub(super) fn check(bytes: &[u8]) -> Result<u64, String> {
    let budget = FIXED_BUDGET.saturating_add(BUDGET_PER_BYTE.saturating_mul(bytes.len() as u64));
    let mut taken = 0_u64;
    let mut open = vec![(Kind::Model, bytes.len())];
    let mut at = 0;
    while let Some(&(kind, end)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let rest = &bytes[..end];
        let broken = |at: usize| format!("it breaks off or is damaged at byte {at}");
        let tag = varint(rest, &mut at).ok_or_else(|| broken(at))?;
        let (field, wire_type) = (tag >> 3, tag & 7);
        taken = taken.saturating_add(FIELD_BYTES);
        let skipped = match wire_type {
            0 => {
                varint(rest, &mut at).ok_or_else(|| broken(at))?;
                0
            }
            1 => 8,
            5 => 4,
            2 => {
                let length = varint(rest, &mut at).ok_or_else(|| broken(at))?;
                let length = usize::try_from(length).ok().filter(|length| *length <= end - at);
                let length = length.ok_or_else(|| broken(at))?;
                if let Some(inner) = child(kind, field) {
                    taken = taken.saturating_add(MESSAGE_BYTES);
                    if open.len() >= DEEPEST {
                        return Err(format!("its messages are nested more than {DEEPEST} deep at byte {at}"));
                    }
                    open.push((inner, at + length));
                    0
                } else {
                    taken = taken.saturating_add(content(kind, field, length as u64));
                    length
                }
            }
            _ => return Err(format!("it holds a field of the unknown wire type {wire_type} at byte {at}")),
        };
        if end - at < skipped {
            return Err(broken(at));
        }
        at += skipped;
        if taken > budget {
            return Err(format!(
                "it would take more than {} MiB of memory to read, far more than its {} bytes",
                budget >> 20,
                bytes.len()
            ));
        }
    }
    Ok(budget - taken)
}

/// The variable-length number at a place, which moves behind it.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 127) << shift;
        if byte & 128 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
    use super::{DEEPEST, check};

    #[test]
    fn groups_and_cut_files_are_refused() {
        assert!(check(&[0xa3, 0x06].repeat(2_000_000)).is_err());
        let model = ModelProto { graph: Some(GraphProto::default()), ir_version: Some(8), ..ModelProto::default() };
        let bytes = model.encode_to_vec();
        assert!(check(&bytes).is_ok());
        assert!(check(&bytes[..bytes.len() - 1]).is_err());
        assert!(check(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(check(&[0xff; 11]).is_err());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| {
            let mut graph = GraphProto::default();
            for _ in 0..depth {
                let attribute = AttributeProto { g: Some(graph), ..AttributeProto::default() };
                let node = NodeProto { attribute: vec![attribute], ..NodeProto::default() };
                graph = GraphProto { node: vec![node], ..GraphProto::default() };
            }
            ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
        };
        assert!(check(&nested(DEEPEST / 3 - 1)).is_ok());
        assert!(check(&nested(DEEPEST / 3 + 1)).is_err_and(|message| message.contains("deep")));
    }

    /// Nodes of two bytes would take a hundred times as much in memory.
    #[test]
    fn small_messages_are_counted() {
        let nodes = [0x0a, 0].repeat(3_000_000);
        let mut bytes = vec![0x3a];
        prost::encode_length_delimiter(nodes.len(), &mut bytes).expect("a length");
        bytes.extend(nodes);
        assert!(check(&bytes).is_err_and(|message| message.contains("memory")));
    }
}
