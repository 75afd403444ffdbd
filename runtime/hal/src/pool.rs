//! Recycling of large allocations.
//!
//! A key switch writes some hundred megabytes of temporaries; fresh pages would cost more than the
//! arithmetic on them. Released allocations are kept, by length, up to a fixed total.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aligned_vec::{AVec, ConstAlign};

use crate::HalError;

/// Words aligned to cache lines.
pub(crate) type Words = AVec<u64, ConstAlign<64>>;

/// Bytes that a pool keeps at most.
const RETAINED_BYTES: usize = 768 << 20;
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
    words: BTreeMap<usize, Vec<Words>>,
    bytes: usize,
}

/// Allocations in waiting, shared by all buffers of a backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Shelf>>);

impl Pool {
    // A poisoned shelf at worst miscounts what it keeps.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `length` words of unspecified content.
    pub(crate) fn take(&self, length: usize) -> Result<Words, HalError> {
        {
            let mut shelf = self.shelf();
            if let Some(words) = shelf.words.get_mut(&length).and_then(Vec::pop) {
                shelf.bytes -= 8 * length;
                return Ok(words);
            }
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
        let length = words.len();
        if length < SHORTEST_WORDS {
            return;
        }
        let mut shelf = self.shelf();
        if shelf.bytes + 8 * length <= RETAINED_BYTES {
            shelf.bytes += 8 * length;
            shelf.words.entry(length).or_default().push(words);
        }
    }
}
