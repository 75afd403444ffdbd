//! Changes of files: of their bytes, of protobuf messages and of JSON values inside them.

use serde_json::Value;

use crate::SplitMix;

/// Cases of a property: many more with `CACHEMIR_FUZZ_CASES`.
pub fn cases(usual: u32) -> u32 {
    std::env::var("CACHEMIR_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// Numbers at which lengths and counts go wrong.
const NUMBERS: [u64; 9] = [0, 1, 2, 127, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 40, u64::MAX];

/// Changes some bytes: flips a bit, sets one, writes a number, cuts a piece or the end off, repeats a piece, exchanges two
/// pieces, or puts bytes in.
pub fn change_bytes(bytes: &mut Vec<u8>, random: &mut SplitMix) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(40)).min(bytes.len());
    match random.below(8) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = *random.pick(&[0, 1, b'"', b'9', b'[', b'{', 0x7f, 0x80, 0xff]),
        3 => {
            let number = random.pick(&NUMBERS).to_le_bytes();
            let length = (bytes.len() - at).min(*random.pick(&[4, 8]));
            bytes[at..at + length].copy_from_slice(&number[..length]);
        }
        4 => drop(bytes.drain(at..end)),
        5 => {
            let piece = bytes[at..end].repeat(1 + random.below(30));
            drop(bytes.splice(at..at, piece));
        }
        6 => bytes.truncate(at),
        _ => {
            let (other, length) = (random.below(bytes.len()), end - at);
            let length = length.min(bytes.len() - other);
            let piece = bytes[other..other + length].to_vec();
            drop(bytes.splice(at..end, piece));
        }
    }
}

/// A field of a protobuf message, whatever its schema.
#[derive(Clone, Debug)]
enum Field {
    /// Field number and value.
    Number(u64, u64),
    /// Field number and bytes: a message, a text or a packed list.
    Bytes(u64, Vec<u8>),
    /// Field number, wire type and bytes of a fixed length.
    Fixed(u64, u64, Vec<u8>),
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn write_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The fields of a message; `None` if the bytes are none.
fn read_message(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = read_number(&mut bytes)?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        let take = |bytes: &mut &[u8], length: u64| {
            let (head, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
            *bytes = rest;
            Some(head.to_vec())
        };
        fields.push(match wire_type {
            _ if number == 0 => return None,
            0 => Field::Number(number, read_number(&mut bytes)?),
            1 => Field::Fixed(number, 1, take(&mut bytes, 8)?),
            2 => {
                let length = read_number(&mut bytes)?;
                Field::Bytes(number, take(&mut bytes, length)?)
            }
            5 => Field::Fixed(number, 5, take(&mut bytes, 4)?),
            _ => return None,
        });
    }
    Some(fields)
}

fn write_message(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Number(number, value) => {
                write_number(&mut bytes, number << 3);
                write_number(&mut bytes, *value);
            }
            Field::Bytes(number, content) => {
                write_number(&mut bytes, number << 3 | 2);
                write_number(&mut bytes, content.len() as u64);
                bytes.extend(content);
            }
            Field::Fixed(number, wire_type, content) => {
                write_number(&mut bytes, number << 3 | wire_type);
                bytes.extend(content);
            }
        }
    }
    bytes
}

/// The message with a field, of it or of a message inside it, removed, repeated, exchanged with another or changed; lengths
/// fit again.
pub fn change_message(bytes: &[u8], random: &mut SplitMix) -> Vec<u8> {
    let Some(mut fields) = read_message(bytes).filter(|fields| !fields.is_empty()) else {
        let mut bytes = bytes.to_vec();
        change_text(&mut bytes, random);
        return bytes;
    };
    let at = random.below(fields.len());
    let other = random.below(fields.len());
    match random.below(10) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(other, fields[at].clone()),
        2 => fields.swap(at, other),
        3 => fields.extend(fields.clone()),
        _ => match &mut fields[at] {
            Field::Number(_, value) => {
                *value = match random.below(3) {
                    0 => value.wrapping_add(1),
                    1 => value.wrapping_sub(1),
                    _ => *random.pick(&NUMBERS),
                }
            }
            Field::Bytes(_, content) => *content = change_message(content, random),
            Field::Fixed(_, _, content) => {
                let specials = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 1e-300];
                let special = random.pick(&specials).to_le_bytes();
                let length = content.len();
                content.copy_from_slice(&special[8 - length..]);
            }
        },
    }
    write_message(&fields)
}

/// Changes a text: a number in it becomes another one, or a byte.
fn change_text(bytes: &mut Vec<u8>, random: &mut SplitMix) {
    let digits: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit()).collect();
    if digits.is_empty() || random.chance(1, 3) {
        return change_bytes(bytes, random);
    }
    let first = *random.pick(&digits);
    let length = bytes[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = random.pick(&NUMBERS).to_string();
    drop(bytes.splice(first..first + length, number.into_bytes()));
}

/// The text of a JSON value with one value in it replaced, removed, repeated or exchanged with another one; now and then
/// changed as bytes besides, or nested deeply.
pub fn change_json(text: &[u8], random: &mut SplitMix) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(text).expect("JSON to start from");
    let mut paths = Vec::new();
    collect(&value, String::new(), &mut paths);
    for _ in 0..=random.below(2) {
        let (path, other) = (random.pick(&paths).clone(), random.pick(&paths).clone());
        let other = value.pointer(&other).cloned().unwrap_or_default();
        let Some(place) = value.pointer_mut(&path) else { continue };
        match (random.below(4), &mut *place) {
            (0, Value::Object(entries)) if !entries.is_empty() => {
                let key = entries.keys().nth(random.below(entries.len())).cloned().unwrap_or_default();
                drop(entries.remove(&key));
            }
            (0, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
            (1, _) => *place = other,
            (2, Value::Array(items)) => items.push(other),
            (2, Value::String(text)) => *text = text.repeat(1 + random.below(50)),
            _ => *place = replacement(random),
        }
    }
    let mut text = serde_json::to_vec(&value).expect("JSON");
    if random.chance(1, 8) {
        change_text(&mut text, random);
    }
    if random.chance(1, 50) {
        let at = random.below(text.len());
        drop(text.splice(at..at, b"[{\"a\":".repeat(50_000)));
    }
    text
}

fn collect(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                collect(value, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), paths);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{path}/{index}"), paths);
            }
        }
        _ => {}
    }
    paths.push(path);
}

fn replacement(random: &mut SplitMix) -> Value {
    match random.below(10) {
        0 => Value::Null,
        1 => random.chance(1, 2).into(),
        2 => (-1).into(),
        3 | 4 => (*random.pick(&NUMBERS)).into(),
        5 => random.pick(&[0.5, -1e300, 1e300]).to_owned().into(),
        6 => Value::String(String::new()),
        7 => "\u{10ffff}\0((".into(),
        8 => Value::Array(vec![]),
        _ => Value::Object(serde_json::Map::new()),
    }
}
