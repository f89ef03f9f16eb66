//! Sums by token, and the weights of places.

/// Sums by token: an array, and a list of its entries that are not zero. So emptying it needs no
/// pass over all entries.
pub(super) struct Tally {
    sums: Vec<u64>,
    tokens: Vec<u32>,
}

impl Tally {
    pub(super) fn new(num_tokens: usize) -> Self {
        Self { sums: vec![0; num_tokens], tokens: Vec::new() }
    }

    /// Make room for more tokens.
    pub(super) fn grow(&mut self, num_tokens: usize) {
        self.sums.resize(num_tokens, 0);
    }

    pub(super) fn add(&mut self, token: u32, count: u64) {
        let sum = &mut self.sums[token as usize];
        if *sum == 0 {
            self.tokens.push(token);
        }
        *sum += count;
    }

    /// Take the sums out, in the order in which the tokens came.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u32, u64)> {
        let Self { sums, tokens } = self;
        tokens.drain(..).map(|token| (token, std::mem::take(&mut sums[token as usize])))
    }
}

/// Finds the weights of ascending places. Each search begins where the last one ended: O(log
/// weights) where the weight changes, O(1) where it stays the same.
pub(super) struct WeightCursor<'w> {
    weights: &'w [(u32, u64)],
}

impl<'w> WeightCursor<'w> {
    pub(super) fn new(weights: &'w [(u32, u64)]) -> Self {
        Self { weights }
    }

    /// How often the piece at `place` occurs.
    pub(super) fn at(&mut self, place: u32) -> u64 {
        if self.weights[0].0 <= place {
            let passed = self.weights.partition_point(|&(end, _)| end <= place);
            self.weights = &self.weights[passed..];
        }
        self.weights[0].1
    }
}
