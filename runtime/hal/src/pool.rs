//! Recycling of large allocations.
//!
//! A key switch writes some hundred megabytes of temporaries; fresh pages would cost more than the
//! arithmetic on them. Released allocations are kept up to a fixed total, those released last: lengths
//! follow levels, so what was released long ago is of a length that is no longer asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aligned_vec::{AVec, ConstAlign};

use crate::HalError;

/// Words aligned to cache lines.
pub(crate) type Words = AVec<u64, ConstAlign<64>>;

/// Bytes of released buffers that a CPU backend keeps for reuse at most.
pub const RETAINED_BYTES: usize = 1536 << 20;
/// Shorter allocations are left to the allocator.
const SHORTEST_WORDS: usize = 1 << 12;

/// Allocations at least this long ask for huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks the kernel to back the reserved memory by huge pages: a row of 2^16 words spans 128 small
/// pages, more than the first-level translation buffers hold. Refusal does no harm.
#[cfg(target_os = "linux")]
fn advise_huge_pages(words: &Words) {
    const PAGE: usize = 4096;
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(address: *mut u64, length: usize, advice: i32) -> i32;
    }
    let start = words.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + 8 * words.capacity()) / PAGE * PAGE);
    if first < end {
        // SAFETY: the range is whole pages inside one live allocation, and this advice changes
        // neither its contents nor its accessibility.
        let _ = unsafe { madvise(words.as_ptr().with_addr(first).cast_mut(), end - first, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_words: &Words) {}

#[derive(Debug, Default)]
struct Shelf {
    /// The one released last comes last.
    released: VecDeque<Words>,
    bytes: usize,
}

impl Shelf {
    /// The shortest allocation of at least `length` words, unless a fourth of it would lie idle.
    fn take(&mut self, length: usize) -> Option<Words> {
        let fits = |words: &Words| (length..=length + length / 3).contains(&words.len());
        let candidates = self.released.iter().enumerate().rev().filter(|(_, words)| fits(words));
        let (index, _) = candidates.min_by_key(|(_, words)| words.len())?;
        let words = self.released.remove(index)?;
        self.bytes -= 8 * words.len();
        Some(words)
    }

    fn give(&mut self, words: Words) {
        self.bytes += 8 * words.len();
        self.released.push_back(words);
        while self.bytes > RETAINED_BYTES {
            let Some(oldest) = self.released.pop_front() else { break };
            self.bytes -= 8 * oldest.len();
        }
    }
}

/// Allocations in waiting, shared by all buffers of a backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Shelf>>);

impl Pool {
    // A poisoned shelf at worst miscounts what it keeps.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least `length` words of unspecified content.
    pub(crate) fn take(&self, length: usize) -> Result<Words, HalError> {
        if let Some(words) = self.shelf().take(length) {
            return Ok(words);
        }
        Self::allocate(length).or_else(|_| {
            *self.shelf() = Shelf::default();
            Self::allocate(length)
        })
    }

    fn allocate(length: usize) -> Result<Words, HalError> {
        let refused = HalError::OutOfMemory { bytes: length.saturating_mul(8) };
        if length > isize::MAX as usize / 16 {
            return Err(refused);
        }
        let mut words = AVec::new(64);
        words.try_reserve_exact(length).map_err(|_| refused)?;
        if 8 * length >= HUGE_PAGE_BYTES {
            advise_huge_pages(&words);
        }
        words.resize(length, 0);
        Ok(words)
    }

    /// Takes an allocation back.
    pub(crate) fn give(&self, words: Words) {
        if words.len() >= SHORTEST_WORDS {
            self.shelf().give(words);
        }
    }
}
