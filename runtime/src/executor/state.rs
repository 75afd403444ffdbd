//! The encrypted arrays that outlive a call.

use std::sync::Arc;

use cachemir_ir::program::Program;

use crate::Error;

/// The elements of a program's state arrays. Copies share the elements, so that a copy is a cheap snapshot.
#[derive(Debug)]
pub struct States<C> {
    arrays: Vec<Vec<Option<Arc<C>>>>,
}

impl<C> Clone for States<C> {
    fn clone(&self) -> Self {
        Self { arrays: self.arrays.clone() }
    }
}

impl<C> States<C> {
    /// The state of a new session: nothing is written, every element is what its array holds initially.
    pub fn new<O, T>(program: &Program<O, T>) -> Self {
        Self { arrays: program.states.iter().map(|state| vec![None; state.capacity as usize]).collect() }
    }

    /// The state arrays, in the program's order; `None` marks an element that was never written.
    pub fn arrays(&self) -> &[Vec<Option<Arc<C>>>] {
        &self.arrays
    }

    /// The state arrays, for restoring a session.
    pub fn arrays_mut(&mut self) -> &mut [Vec<Option<Arc<C>>>] {
        &mut self.arrays
    }

    pub(crate) fn element(&mut self, array: usize, index: i64) -> Result<&mut Option<Arc<C>>, Error> {
        let elements = self.arrays.get_mut(array).ok_or_else(|| Error::execution(format!("no state array {array}")))?;
        let capacity = elements.len();
        usize::try_from(index).ok().and_then(|index| elements.get_mut(index)).ok_or_else(|| {
            Error::execution(format!("state array {array} has {capacity} elements, not element {index}"))
        })
    }
}
