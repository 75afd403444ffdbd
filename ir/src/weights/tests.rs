//! Stored weights have the entries that a dense computation gives, to the bit, and say when they are not what they were.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// A stored matrix at random, and its numbers by row and column.
#[derive(Clone, Debug)]
struct Case {
    stored: Stored,
    numbers: Vec<f32>,
}

fn bytes_of(values: &[f32], kind: Float) -> (Vec<u8>, Vec<f32>) {
    match kind {
        Float::F32 => (values.iter().flat_map(|value| value.to_le_bytes()).collect(), values.to_vec()),
        Float::F16 => {
            let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            (
                halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
                halves.iter().map(|half| half.to_f32()).collect(),
            )
        }
        Float::Bf16 => {
            let halves: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            (
                halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
                halves.iter().map(|half| half.to_f32()).collect(),
            )
        }
    }
}

fn region(bytes: Vec<u8>) -> Region {
    Region::of_bytes(bytes.into(), None)
}

/// Integers of so many bits, packed, and as numbers.
fn integers(raw: &[u8], bits: u32, signed: bool) -> (Vec<u8>, Vec<i32>) {
    let number = |byte: u8| match (bits, signed) {
        (4, true) => i32::from((byte << 4) as i8 >> 4),
        (4, false) => i32::from(byte & 15),
        (_, true) => i32::from(byte as i8),
        (_, false) => i32::from(byte),
    };
    let packed = match bits {
        4 => raw.chunks(2).map(|pair| pair[0] & 15 | (pair.get(1).unwrap_or(&0) & 15) << 4).collect(),
        _ => raw.to_vec(),
    };
    (packed, raw.iter().map(|&byte| number(byte)).collect())
}

fn kinds() -> impl Strategy<Value = Float> {
    prop::sample::select(vec![Float::F32, Float::F16, Float::Bf16])
}

fn floats(values: &[f32], kind: Float) -> (Floats, Vec<f64>) {
    let (bytes, numbers) = bytes_of(values, kind);
    (Floats { region: region(bytes), kind }, numbers.into_iter().map(f64::from).collect())
}

fn encoded(rows: usize, columns: usize) -> impl Strategy<Value = (Region, Encoding, Vec<f32>)> {
    let numbers = move |count: usize| prop::collection::vec(-2.0f32..2.0, count);
    let float = (kinds(), numbers(rows * columns)).prop_map(|(kind, values)| {
        let (bytes, numbers) = bytes_of(&values, kind);
        (region(bytes), Encoding::Float(kind), numbers)
    });
    let shape =
        (prop::sample::select(vec![4u32, 8]), any::<bool>(), 0..3usize, 1..=rows + 1, 1..=columns + 1, 0..3usize);
    let blocks = shape.prop_flat_map(move |(bits, signed, padding, down, across, zeros)| {
        let (row_length, of_zeros) = (columns + padding, columns.div_ceil(across) + padding);
        let count = rows.div_ceil(down) * columns.div_ceil(across);
        let raw = move |count: usize| prop::collection::vec(any::<u8>(), count);
        let parts =
            (raw(rows * row_length), numbers(count), kinds(), raw(rows.div_ceil(down) * of_zeros), numbers(count));
        parts.prop_map(move |(raw, scales, kind, raw_zeros, float_zeros)| {
            let (packed, numbers) = integers(&raw, bits, signed);
            let (scales, scale_numbers) = floats(&scales, kind);
            let blocks = columns.div_ceil(across);
            let (zeros, zero_numbers) = match zeros {
                0 => (Zeros::All(3), vec![3.0; count]),
                1 => {
                    let (packed, numbers) = integers(&raw_zeros, bits, signed);
                    let at = |block: usize| f64::from(numbers[block / blocks * of_zeros + block % blocks]);
                    (Zeros::Integers { region: region(packed), row_length: of_zeros }, (0..count).map(at).collect())
                }
                _ => {
                    let (zeros, numbers) = floats(&float_zeros, kind);
                    (Zeros::Floats(zeros), numbers)
                }
            };
            let value = |index: usize| {
                let (row, column) = (index / columns, index % columns);
                let block = row / down * blocks + column / across;
                ((f64::from(numbers[row * row_length + column]) - zero_numbers[block]) * scale_numbers[block]) as f32
            };
            let values = (0..rows * columns).map(value).collect();
            let integers = Integers { bits, signed, row_length, block: [down, across], scales, zeros };
            (region(packed), Encoding::Integers(integers), values)
        })
    });
    prop_oneof![float, blocks]
}

fn cases() -> impl Strategy<Value = Case> {
    let extents = (1..40usize, 1..9usize, any::<bool>());
    extents.prop_flat_map(|(rows, columns, inputs_first)| {
        let outputs = if inputs_first { columns } else { rows };
        let some = prop::collection::vec(0..outputs as u32, 1..=outputs);
        let scale = prop_oneof![Just(1.0), -3.0..3.0f64];
        (encoded(rows, columns), prop::option::of(some), scale).prop_map(move |(encoded, outputs, scale)| {
            let (region, encoding, numbers) = encoded;
            let orientation = if inputs_first { Orientation::InputsFirst } else { Orientation::OutputsFirst };
            let stored = Stored { region, encoding, extents: [rows, columns], orientation, outputs, scale };
            Case { stored, numbers }
        })
    })
}

proptest! {
    #[test]
    fn entries_are_those_of_the_dense_computation(case in cases(), gamma in prop::option::of(-2.0f32..2.0), factor in -4.0..4.0f64) {
        let Case { stored, numbers } = case;
        let (outputs, inputs, columns) = (stored.outputs(), stored.inputs(), stored.extents[1]);
        let gamma: Option<Vec<f32>> = gamma.map(|first| (0..inputs).map(|input| first + input as f32).collect());
        let weights = Weights::new(stored.clone()).unwrap();
        let folded = weights.folded(gamma.clone().map(Region::of_numbers), factor).unwrap();
        let (plain, entries) = (weights.load("w").unwrap(), folded.load("w").unwrap());
        prop_assert_eq!((plain.len(), folded.entries()), (outputs * inputs, outputs * inputs));
        for output in 0..outputs {
            let from = stored.outputs.as_ref().map_or(output, |outputs| outputs[output] as usize);
            for input in 0..inputs {
                let number = match stored.orientation {
                    Orientation::OutputsFirst => numbers[from * columns + input],
                    Orientation::InputsFirst => numbers[input * columns + from],
                };
                let scaled = if stored.scale == 1.0 { number } else { (f64::from(number) * stored.scale) as f32 };
                let of_column = gamma.as_ref().map_or(1.0, |gamma| f64::from(gamma[input]));
                let expected = (f64::from(scaled) * of_column * factor) as f32;
                prop_assert_eq!(plain[output * inputs + input].to_bits(), scaled.to_bits());
                prop_assert_eq!(entries[output * inputs + input].to_bits(), expected.to_bits());
            }
        }
        prop_assert_eq!(folded.values("w").unwrap(), &*entries);
        let kept = Kept::new(4 * outputs * inputs);
        let first = kept.load("w", &folded).unwrap();
        prop_assert!(Arc::ptr_eq(&first, &kept.load("w", &folded).unwrap()));
    }

    #[test]
    fn what_does_not_fit_is_refused(case in cases(), cut in any::<prop::sample::Index>(), which in 0..3) {
        let mut stored = case.stored;
        match which {
            0 => {
                let bytes = stored.region.read("w").unwrap();
                stored.region = region(bytes[..cut.index(bytes.len())].to_vec());
            }
            1 => stored.outputs = Some(vec![stored.extents.into_iter().max().unwrap() as u32]),
            _ => stored.scale = f64::INFINITY,
        }
        prop_assert!(Weights::new(stored).is_err());
    }
}

#[test]
fn factors_have_to_fit() {
    let weights = Weights::of_matrix(vec![1.0; 6], 3);
    assert!(weights.folded(Some(Region::of_numbers(vec![1.0; 2])), 1.0).is_err());
    assert!(weights.folded(None, f64::NAN).is_err());
    assert_eq!(weights.folded(None, 1.0).unwrap(), weights);
    assert_ne!(weights.folded(None, 2.0).unwrap(), weights);
    assert_ne!(weights.folded(None, 2.0).unwrap().hash(), weights.hash());
    assert_eq!(weights.hash(), crate::hashes::hash_of(&[1.0; 6]));
}

#[test]
fn what_is_beyond_the_budget_is_shared_while_it_is_used_and_loaded_anew() {
    let weights = |size: usize| Weights::of_values(vec![1.5; size]).folded(None, 2.0).unwrap();
    let (small, large) = (weights(4), weights(100));
    let kept = Kept::new(40);
    let first = kept.load("large", &large).unwrap();
    assert!(Arc::ptr_eq(&first, &kept.load("large", &large).unwrap()));
    let held = Arc::downgrade(&first);
    drop(first);
    assert!(held.upgrade().is_none());
    let held = Arc::downgrade(&kept.load("small", &small).unwrap());
    assert!(held.upgrade().is_some());
    assert_eq!(kept.load("large", &large).unwrap()[99], 3.0);
    // What has the same name is something else.
    assert_eq!(kept.load("small", &weights(3)).unwrap().len(), 3);
}

fn of_file(path: &std::path::Path) -> Weights {
    let region = Region::of_file(DataFile::new(path), 4, 8).unwrap();
    Weights::new(Stored { region, ..Weights::of_values(vec![0.0; 2]).stored().clone() }).unwrap()
}

#[test]
fn files_are_checked_when_they_are_read_first_and_when_they_were_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let contents = |second: f32| [0.0, 1.0, second].map(f32::to_le_bytes).concat();
    std::fs::write(&path, contents(2.0)).unwrap();
    let hash = of_file(&path).stored().region.hash();
    let anew = || {
        let region = Region::in_file(DataFile::new(&path), 4, 8, hash);
        Weights::new(Stored { region, ..Weights::of_values(vec![0.0; 2]).stored().clone() }).unwrap()
    };
    let known = anew();
    assert_eq!(*known.load("w").unwrap(), [1.0, 2.0]);

    // Another file under the name is nothing to those who have opened the first one.
    let other = folder.path().join("other");
    std::fs::write(&other, contents(3.0)).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(*known.load("w").unwrap(), [1.0, 2.0]);
    let error = anew().load("layers.0.q").unwrap_err();
    assert_eq!(error.code(), "weights-changed");
    let text = error.to_string();
    let expected = crate::hashes::hexadecimal(&hash);
    let found = crate::hashes::hexadecimal(&crate::hashes::hash_of(&[1.0, 3.0]));
    for part in ["layers.0.q", path.to_str().unwrap(), &expected, &found, "compile the model again"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }

    // Written to in place after it was checked.
    std::fs::write(&path, contents(2.0)).unwrap();
    let known = anew();
    known.load("w").unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &7.0f32.to_le_bytes(), 8).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(known.load("w").unwrap_err().code(), "weights-changed");

    // Cut off, or gone.
    std::fs::write(&path, &contents(2.0)[..10]).unwrap();
    let error = anew().load("layers.0.q").unwrap_err();
    assert_eq!(error.code(), "weights-unreadable");
    let text = error.to_string();
    for part in ["layers.0.q", path.to_str().unwrap(), &expected, "10 bytes long", "put the file back"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(anew().load("w").unwrap_err().code(), "weights-unreadable");
    std::fs::create_dir(&path).unwrap();
    assert_eq!(anew().load("w").unwrap_err().code(), "weights-unreadable");
}
