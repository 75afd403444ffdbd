//! The operations against their definitions.

use proptest::prelude::*;

use super::{Operands, evaluate};
use crate::import::dense::{Dense, Kind};
use crate::import::onnx::OnnxNode;
use crate::import::onnx::testing::{self, model, read_model};

/// A node of the given operation, read as from a model file.
fn node(op_type: &str, ints: &[(&str, &[i64])], int: &[(&str, i64)], outputs: usize) -> OnnxNode {
    let names: Vec<String> = (0..outputs).map(|output| format!("y{output}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut node = testing::node(op_type, &[], &names);
    node.attribute.extend(ints.iter().map(|(name, values)| testing::ints(name, values)));
    node.attribute.extend(int.iter().map(|(name, value)| testing::int(name, *value)));
    read_model(&model(vec![node], Vec::new(), &names)).expect("a model").nodes.remove(0)
}

fn run(node: &OnnxNode, inputs: &[&Dense]) -> Result<Vec<Dense>, String> {
    evaluate(&Operands { node, values: inputs.iter().map(|input| Some(*input)).collect() })
}

fn one(node: &OnnxNode, inputs: &[&Dense]) -> Dense {
    run(node, inputs).expect("it evaluates").remove(0)
}

fn floats(shape: &[usize], start: f64) -> Dense {
    let count = shape.iter().product::<usize>();
    let values = (0..count).map(|index| start + index as f64 * 0.5);
    Dense::from_f64(shape.to_vec(), Kind::F32, values)
}

fn ints(values: &[i64]) -> Dense {
    Dense::int_vector(values.to_vec())
}

#[test]
fn slices_follow_pythons_rules() {
    let x = ints(&[0, 1, 2, 3, 4, 5, 6]);
    let slice = node("Slice", &[], &[], 1);
    let take = |start: i64, end: i64, step: i64| {
        one(&slice, &[&x, &ints(&[start]), &ints(&[end]), &ints(&[0]), &ints(&[step])]).to_ints()
    };
    assert_eq!(take(1, 4, 1), [1, 2, 3]);
    assert_eq!(take(-3, i64::MAX, 1), [4, 5, 6]);
    assert_eq!(take(5, i64::MIN, -2), [5, 3, 1]);
    assert_eq!(take(-1, -4, -1), [6, 5, 4]);
    assert_eq!(take(4, 2, 1), [0_i64; 0]);
    assert!(run(&slice, &[&x, &ints(&[0]), &ints(&[1]), &ints(&[0]), &ints(&[0])]).is_err());
}

#[test]
fn powers_and_remainders_keep_their_kinds_and_signs() {
    let power = node("Pow", &[], &[], 1);
    assert_eq!(one(&power, &[&ints(&[4, 9, 2]), &floats(&[1], 1.5)]).to_ints(), [8, 27, 2]);
    assert_eq!(one(&power, &[&floats(&[2], 4.0), &ints(&[2])]).to_f64(), [16.0, 20.25]);
    let (dividends, divisors) = (ints(&[5, -5, 5, -5]), ints(&[3, 3, -3, -3]));
    assert_eq!(one(&node("Mod", &[], &[], 1), &[&dividends, &divisors]).to_ints(), [2, 1, -1, -2]);
    assert!(run(&node("Mod", &[], &[], 1), &[&dividends, &ints(&[0])]).is_err());
}

#[test]
fn casts_wrap_around_to_narrower_integers() {
    let cast = |to: i64, x: &Dense| run(&node("Cast", &[], &[("to", to)], 1), &[x]).map(|mut casts| casts.remove(0));
    let wrapped = |to: i64, values: &[i64]| cast(to, &ints(values)).expect("it is cast").to_ints();
    assert_eq!(wrapped(3, &[127, 128, 255, 256, -129]), [127, -128, -1, 0, 127]);
    assert_eq!(wrapped(2, &[255, 256, -1]), [255, 0, 255]);
    assert_eq!(wrapped(5, &[32768, -32769]), [-32768, 32767]);
    assert_eq!(wrapped(4, &[65536, -1]), [0, 65535]);
    assert_eq!(wrapped(6, &[1 << 31, i64::MAX]), [-(1 << 31), -1]);
    assert_eq!(wrapped(12, &[1 << 32, -1]), [0, (1 << 32) - 1]);
    assert_eq!(wrapped(7, &[i64::MIN, i64::MAX]), [i64::MIN, i64::MAX]);
    let float = |value: f64| Dense::from_f64(vec![1], Kind::F32, [value]);
    assert_eq!(cast(3, &float(-128.75)).expect("it is cast").to_ints(), [-128]);
    for (to, value) in [(3, 128.0), (2, -1.0), (6, 3e9), (7, 1e19), (7, f64::NAN), (6, f64::NEG_INFINITY)] {
        assert!(cast(to, &float(value)).is_err(), "{value} to {to}");
    }
}

#[test]
fn shapes_are_inferred_and_checked() {
    let x = floats(&[2, 3, 4], 0.0);
    let reshape = node("Reshape", &[], &[], 1);
    assert_eq!(one(&reshape, &[&x, &ints(&[0, -1])]).shape, [2, 12]);
    assert!(run(&reshape, &[&x, &ints(&[5, -1])]).is_err());
    assert!(run(&reshape, &[&x, &ints(&[-1, -1])]).is_err());
    let unsqueeze = node("Unsqueeze", &[("axes", &[0, -1])], &[], 1);
    assert_eq!(one(&unsqueeze, &[&x]).shape, [1, 2, 3, 4, 1]);
    let parts = run(&node("Split", &[], &[("axis", 2)], 3), &[&x, &ints(&[1, 0, 3])]).expect("it evaluates");
    assert_eq!(parts.iter().map(|part| part.shape[2]).collect::<Vec<_>>(), [1, 0, 3]);
    let rejoined = one(&node("Concat", &[], &[("axis", -1)], 1), &parts.iter().collect::<Vec<_>>());
    assert_eq!(rejoined, x);
    assert!(run(&node("Expand", &[], &[], 1), &[&x, &ints(&[2, 5, 4])]).is_err());
}

#[test]
fn scatter_and_gather_are_inverse() {
    let x = floats(&[3, 4], 0.0);
    let indices = Dense::ints(vec![2, 2], vec![0, 3, -1, 1]);
    let picked = one(&node("GatherND", &[], &[], 1), &[&x, &indices]);
    assert_eq!(picked.to_f64(), [1.5, 4.5]);
    let updates = floats(&[2], 100.0);
    let scattered = one(&node("ScatterND", &[], &[], 1), &[&x, &indices, &updates]);
    assert_eq!(one(&node("GatherND", &[], &[], 1), &[&scattered, &indices]), updates);
    assert!(run(&node("GatherND", &[], &[], 1), &[&x, &Dense::ints(vec![1, 2], vec![3, 0])]).is_err());
}

#[test]
fn triangles_keep_their_side_of_the_diagonal() {
    let x = Dense::from_f64(vec![3, 3], Kind::F32, vec![1.0; 9]);
    let upper = one(&node("Trilu", &[], &[], 1), &[&x, &Dense::ints(vec![], vec![1])]);
    assert_eq!(upper.to_f64(), [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let lower = one(&node("Trilu", &[], &[("upper", 0)], 1), &[&x]);
    assert_eq!(lower.to_f64(), [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
}

proptest! {
    #[test]
    fn products_of_matrices(rows in 1_usize..4, inner in 1_usize..5, columns in 1_usize..4, batch in 1_usize..3) {
        let (a, b) = (floats(&[batch, rows, inner], -1.0), floats(&[inner, columns], 2.0));
        let product = one(&node("MatMul", &[], &[], 1), &[&a, &b]);
        prop_assert_eq!(&product.shape, &[batch, rows, columns]);
        let (x, y) = (a.to_f64(), b.to_f64());
        for (index, entry) in product.to_f64().into_iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let expected: f64 = (0..inner).map(|k| x[row * inner + k] * y[k * columns + column]).sum();
            prop_assert_eq!(entry, expected);
        }
    }

    #[test]
    fn transposition_moves_every_index(extents in [1_usize..4, 1..4, 1..4], swap in 0_usize..6) {
        let order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][swap];
        let x = floats(&extents, 0.0);
        let y = one(&node("Transpose", &[("perm", &order.map(|axis| axis as i64))], &[], 1), &[&x]);
        let (from, to) = (x.to_f64(), y.to_f64());
        for (index, entry) in from.into_iter().enumerate() {
            let at = [index / (extents[1] * extents[2]), index / extents[2] % extents[1], index % extents[2]];
            let moved = order.map(|axis| at[axis]);
            let shape = order.map(|axis| extents[axis]);
            prop_assert_eq!(entry, to[(moved[0] * shape[1] + moved[1]) * shape[2] + moved[2]]);
        }
    }

    #[test]
    fn means_over_an_axis(extents in [1_usize..4, 1..4, 1..4], axis in 0_usize..3) {
        let x = floats(&extents, 0.0);
        let mean = one(&node("ReduceMean", &[("axes", &[axis as i64])], &[("keepdims", 1)], 1), &[&x]);
        // Adding the mean's negative leaves deviations that sum to zero along the axis.
        let deviations = one(&node("Sub", &[], &[], 1), &[&x, &mean]);
        let sums = one(&node("ReduceSum", &[("axes", &[axis as i64])], &[("keepdims", 0)], 1), &[&deviations]);
        prop_assert_eq!(sums.shape.len(), 2);
        prop_assert!(sums.to_f64().iter().all(|sum| sum.abs() < 1e-5));
    }
}
