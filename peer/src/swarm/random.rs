//! Randomness without a source of it: splitmix64 from a seed number, so that every run can be repeated.

/// A row of numbers that looks random and follows from its seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The row of this seed.
    pub const fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The product's upper half is below the bound; its bias does not matter for a choice among thousands.
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).expect("below the bound")
    }
}

/// The mixer of splitmix64: spreads the bits of a number over all of it.
pub const fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
