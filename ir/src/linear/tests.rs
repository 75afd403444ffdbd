//! Linear maps against dense matrices.

use proptest::prelude::*;

use super::*;
use crate::weights::Kept;

fn table(name: &str, shape: [u32; 2], seed: f32) -> Table {
    let count = shape[0] * shape[1];
    let values = (0..count).map(|index| ((index as f32 + seed) * 1.7).sin()).collect();
    Table::new(name, shape, values)
}

/// Checks a map of plain vectors of these widths in `slots` slots with `unit` vectors each, one output a width, pairs of
/// matrices where `pair`.
fn check(slots: u32, unit: u32, input: u32, outputs: &[u32], pair: bool, landing: Option<i64>) -> Result<(), String> {
    let plain = |width| Order::of(Features::Plain { width, offset: 0 });
    let mut tables = Vec::new();
    let mut matrix = |rows: u32| {
        let id = tables.len() as u32;
        tables.push(table("w", [rows, input], id as f32));
        tables.push(table("b", [rows, 1], id as f32));
        Matrix { weights: TableId(id), bias: Some(TableId(id + 1)) }
    };
    let linear = Linear {
        input: plain(input),
        unit,
        vectors: Integer::from(i64::from(unit)),
        complex_operand: false,
        outputs: outputs
            .iter()
            .map(|&rows| Output {
                matrices: (0..=usize::from(pair)).map(|_| matrix(rows)).collect(),
                order: plain(rows),
                landing: landing.map(Integer::from),
            })
            .collect(),
    };
    let problems = linear.problems(slots, &tables);
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    let entry = |index: u32, vector: u32| f64::from(index * 7 % 5) - 1.5 + f64::from(vector);
    let mut x = vec![0.0; slots as usize];
    let stride = slots / linear.input.positions;
    for index in 0..input {
        for vector in 0..unit {
            x[(index * stride + vector) as usize] = entry(index, vector);
        }
    }
    let environment = Environment::new(0, 1);
    let found = linear.evaluate(&x, &tables, &environment, &Kept::default()).unwrap();
    for form in [Some(linear.clone()), linear.with_complex_operand(slots)].into_iter().flatten() {
        let problems = form.problems(slots, &tables);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let by_diagonals = form.evaluate_by_diagonals(&x, &tables, &environment).unwrap();
        for (slot, (a, b)) in found.iter().flatten().zip(by_diagonals.iter().flatten()).enumerate() {
            if (a - b).abs() > 1e-9 {
                let operand = if form.complex_operand { "a complex operand" } else { "an operand" };
                return Err(format!("slot {slot}: {a}, by diagonals {b} of {operand}"));
            }
        }
    }
    for (result, (output, matrix)) in found.iter().zip(linear.matrices()) {
        let rows = output.order.features.width();
        let (weights, bias) = (tables[matrix.weights.0 as usize].load().unwrap(), matrix.bias.unwrap());
        let stride = slots / output.order.positions;
        for row in 0..rows {
            for vector in 0..unit {
                let dense: f64 = (0..input)
                    .map(|column| f64::from(weights[(row * input + column) as usize]) * entry(column, vector))
                    .sum();
                let dense = dense + f64::from(tables[bias.0 as usize].values().unwrap()[row as usize]);
                let slot = row * stride + vector + landing.unwrap_or(0) as u32;
                let found = result[slot as usize];
                if (found - dense).abs() > 1e-9 {
                    return Err(format!("row {row} of vector {vector}: {found} instead of {dense}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_dense_product_in_every_shape() {
    for (slots, input, outputs) in [
        (64, 4, &[4][..]),
        (64, 8, &[16, 16]),
        (64, 16, &[4]),
        (64, 16, &[8, 8]),
        (64, 32, &[2]),
        (64, 4, &[2, 4, 3]),
        (256, 8, &[8, 2, 2]),
        (256, 12, &[40]),
        (256, 64, &[256]),
        (256, 256, &[64]),
        (64, 64, &[64]),
    ] {
        for pair in [false, true] {
            check(slots, 1, input, outputs, pair, None).unwrap_or_else(|e| panic!("{slots} {input} {outputs:?}: {e}"));
        }
    }
}

#[test]
fn units_hold_several_vectors() {
    for (slots, unit, input, outputs) in [(256, 4, 8, &[16, 16][..]), (256, 8, 16, &[4]), (128, 2, 8, &[8, 8, 4])] {
        check(slots, unit, input, outputs, true, None)
            .unwrap_or_else(|error| panic!("{slots} {unit} {input}: {error}"));
    }
}

/// A map from one plain vector to another.
pub(crate) fn map(input: u32, output: u32) -> Linear {
    let plain = |width| Order::of(Features::Plain { width, offset: 0 });
    let matrices = vec![Matrix { weights: TableId(0), bias: None }];
    let outputs = vec![Output { matrices, order: plain(output), landing: None }];
    Linear { input: plain(input), unit: 1, vectors: Integer::from(1_i64), complex_operand: false, outputs }
}

/// Products, and rotations of spread, baby and giant steps, and reduction.
fn counted(slots: u32, linear: &Linear) -> (usize, usize) {
    let (mut products, mut rotations) = (0, 0);
    linear.for_each_step(slots, &Environment::new(0, 1), &mut |step, _| {
        products += usize::from(step == Step::MultiplyPlain);
        rotations += usize::from(matches!(step, Step::Rotate { sharing, .. } if sharing.is_counted()));
    });
    (products, rotations)
}

#[test]
fn counts_follow_the_formulas() {
    for (slots, inputs, outputs) in [(256, 32, 32), (1024, 64, 256), (2048, 256, 64), (32768, 4096, 16384)] {
        let log = |x: u32| x.ilog2() as usize;
        let products = (inputs * outputs / slots).max(1) as usize;
        let babies = 1 << products.ilog2().div_ceil(2);
        let rotations = log(slots / inputs) + babies - 1 + products / babies - 1 + log(slots / outputs);
        assert_eq!(counted(slots, &map(inputs, outputs)), (products, rotations), "{slots} {inputs} {outputs}");
    }
    // Layers of Llama-3-8B.
    assert_eq!(counted(32768, &map(4096, 4096)), (512, 52));
    assert_eq!(counted(32768, &map(4096, 16384)), (2048, 98));
    assert_eq!(counted(32768, &map(4096, 1024)), (128, 30));
    // A complex operand halves products; one rotation makes it.
    let halved = |input, output| counted(32768, &map(input, output).with_complex_operand(32768).unwrap());
    assert_eq!(halved(4096, 4096), (256, 37));
    assert_eq!(halved(16384, 4096), (1024, 67));
    // Narrow vectors take fewer.
    assert_eq!(counted(8192, &map(64, 64)), (1, 12));
    assert_eq!(counted(8192, &map(64, 32)), (1, 12));
}

#[test]
fn one_diagonal_has_no_second_half() {
    assert_eq!(map(64, 64).with_complex_operand(8192), None);
    let complex = map(64, 64).with_complex_operand(2048).unwrap();
    assert_eq!(complex.with_complex_operand(2048), None);
    let tables = [table("w", [64, 64], 0.0)];
    assert_eq!(complex.problems(2048, &tables), Vec::<String>::new());
    assert!(!complex.problems(4096, &tables).is_empty());
}

#[test]
fn what_does_not_fit_is_said() {
    let tables = [table("w", [4, 4], 0.0)];
    let plain = |width| Order::of(Features::Plain { width, offset: 0 });
    let output =
        |rows| Output { matrices: vec![Matrix { weights: TableId(0), bias: None }], order: plain(rows), landing: None };
    let linear = |unit, outputs| Linear {
        input: plain(4),
        unit,
        vectors: Integer::from(1_i64),
        complex_operand: false,
        outputs,
    };
    assert_eq!(linear(1, vec![output(4)]).problems(64, &tables), Vec::<String>::new());
    for wrong in [
        linear(3, vec![output(4)]),
        linear(32, vec![output(4)]),
        linear(1, vec![]),
        linear(1, vec![output(8)]),
        linear(1, vec![Output { matrices: vec![], ..output(4) }]),
        linear(2, vec![Output { landing: Some(Integer::from(1_i64)), ..output(4) }]),
        linear(0, vec![output(4)]),
    ] {
        assert!(!wrong.problems(64, &tables).is_empty(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn landings_move_the_result(target in 0_i64..16, log_rows in 0_u32..3, pair: bool) {
        // Output groups have 64 / rows slots.
        let rows = 1 << log_rows;
        let most = 64 / i64::from(rows);
        prop_assert_eq!(check(64, 1, 4, &[rows], pair, Some(target % most)), Ok(()));
    }
}
