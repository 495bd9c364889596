//! How `memory.budget` is divided.
//!
//! The budget is the sum of what grows with load; code, stacks and the runtimes' fixed buffers come on top and stay
//! below 64 MiB. Each share is enforced by the component that gets it; this file only divides.

use crate::rt::arena::ARENA_BYTES_MIN;

const MIB: u64 = 1 << 20;
/// Smallest budget.
pub const BUDGET_BYTES_MIN: u64 = 64 * MIB;
/// Budget when the configuration names none.
pub const BUDGET_BYTES_DEFAULT: u64 = 1024 * MIB;
/// Largest budget: above it a typing error is likelier than such a machine.
pub const BUDGET_BYTES_MAX: u64 = 4 << 40;

/// The shares of the memory budget, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// All of it.
    pub budget_bytes: u64,
    /// The piece arena: every piece in flight, and those that stay in memory.
    pub arena_bytes: usize,
    /// Whether pieces that were read or came of late stay in memory while there is room.
    pub keeps_hot: bool,
    /// Page cache of the catalog's database.
    pub catalog_cache_bytes: usize,
    /// The index of tasks and pieces in memory, over all shards.
    pub index_bytes: usize,
    /// Buffers of connections: request heads, frames, form fields, the backend client's own.
    pub session_bytes: usize,
}

impl MemoryPlan {
    /// Divides a budget that was checked against the bounds of this file.
    pub fn new(budget_bytes: u64) -> MemoryPlan {
        assert!((BUDGET_BYTES_MIN..=BUDGET_BYTES_MAX).contains(&budget_bytes), "the configuration checks the bounds");
        let catalog_cache = (budget_bytes / 32).clamp(8 * MIB, 32 * MIB);
        let index = budget_bytes / 16;
        let session = (budget_bytes / 16).min(128 * MIB);
        let arena = budget_bytes - catalog_cache - index - session;
        MemoryPlan {
            budget_bytes,
            arena_bytes: bytes(arena / (2 * MIB) * (2 * MIB)),
            keeps_hot: true,
            catalog_cache_bytes: bytes(catalog_cache),
            index_bytes: bytes(index),
            session_bytes: bytes(session),
        }
    }
}

fn bytes(value: u64) -> usize {
    usize::try_from(value).expect("at most the largest budget, and addresses have 64 bits")
}

const _: () = assert!(size_of::<usize>() == 8);
const _: () =
    assert!(BUDGET_BYTES_MIN - 8 * MIB - 2 * (BUDGET_BYTES_MIN / 16) >= ARENA_BYTES_MIN as u64, "smallest arena fits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_budget_and_waste_little() {
        for budget in [64, 65, 100, 256, 1024, 1025, 65_536, 4 << 20].map(|mib| mib * MIB) {
            let plan = MemoryPlan::new(budget);
            let sum = plan.arena_bytes + plan.catalog_cache_bytes + plan.index_bytes + plan.session_bytes;
            assert!(sum as u64 <= budget && sum as u64 > budget - 2 * MIB, "{plan:?}");
            assert!(plan.arena_bytes >= ARENA_BYTES_MIN, "{plan:?}");
            assert!(plan.arena_bytes as u64 >= budget / 10 * 7, "most of it is for pieces: {plan:?}");
        }
    }
}
