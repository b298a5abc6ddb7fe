//! Memory that is taken from the system while text is made: none, after the first tokens.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use xfc_runtime::generate::GenerateOptions;
use xfc_runtime::session::SessionOptions;
use xfc_tests::Result;
use xfc_tests::case::Case;
use xfc_tests::compile::load;

thread_local! {
    /// Times that this thread took memory from the allocator.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more, and counts nothing.
    let _ = TAKEN.try_with(|taken| taken.set(taken.get() + 1));
}

/// The system's allocator.
struct Counting;

// SAFETY: all of it is done by the system's allocator; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pages are taken, rings are overwritten, experts are chosen and states change hands: the caller's thread asks for no memory.
#[test]
fn steps_take_no_memory_from_the_system() -> Result<()> {
    const FIRST: usize = 4;
    const TOKENS: usize = 60;
    for (name, threads) in [("llama3", 1), ("gemma3", 2), ("mixtral", 1), ("mamba", 1)] {
        let case = Case::load(name)?;
        let model = load(&case, "cpu", threads)?;
        let mut session = model.session(&SessionOptions { context_tokens: Some(96), ..SessionOptions::default() })?;
        let sequence = session.add_sequence()?;
        let options = GenerateOptions { max_tokens: Some(TOKENS as u64), ..GenerateOptions::default() };
        let mut tokens = session.generate(sequence, &[1, 2, 3], options)?;
        let mut made = 0;
        for token in tokens.by_ref().take(FIRST) {
            token?;
            made += 1;
        }
        let before = TAKEN.get();
        assert!(before > 0, "nothing is counted");
        for token in tokens {
            token?;
            made += 1;
        }
        assert_eq!((made, TAKEN.get() - before), (TOKENS, 0), "{name}");
    }
    Ok(())
}
