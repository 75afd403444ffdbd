//! Preconditions that all CPU backends check alike, before any data is touched.

use crate::{CpuBuffer, HalError, Shape};

pub(crate) fn limbs(operation: &'static str, limbs: &[usize], moduli: usize) -> Result<(), HalError> {
    if limbs.is_empty() || limbs.iter().any(|i| *i >= moduli) {
        return Err(HalError::Limbs { operation, limbs: limbs.to_vec(), moduli });
    }
    Ok(())
}

pub(crate) fn at_least(
    operation: &'static str,
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), HalError> {
    if found < expected {
        return Err(HalError::Shape { operation, what, expected, found });
    }
    Ok(())
}

pub(crate) fn equal(
    operation: &'static str,
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), HalError> {
    if found != expected {
        return Err(HalError::Shape { operation, what, expected, found });
    }
    Ok(())
}

/// An operand of a product: the batch's number of polynomials, or one.
pub(crate) fn broadcast(operation: &'static str, polynomials: usize, operand: Shape) -> Result<(), HalError> {
    if operand.polynomials == 1 {
        return Ok(());
    }
    equal(operation, "polynomials of an operand", polynomials, operand.polynomials)
}

/// Refuses buffers whose words stand for several positions.
pub(crate) fn whole(operation: &'static str, buffer: &CpuBuffer) -> Result<(), HalError> {
    equal(operation, "positions of a word", 1, buffer.repetition())
}

/// The number of positions that each of `coefficients` coefficients of a subring stands for in a ring of this degree.
pub(crate) fn repetition(operation: &'static str, degree: usize, coefficients: usize) -> Result<usize, HalError> {
    if coefficients < 2 || !coefficients.is_power_of_two() || coefficients > degree {
        return Err(HalError::Shape { operation, what: "coefficients", expected: degree, found: coefficients });
    }
    Ok(degree / coefficients)
}
