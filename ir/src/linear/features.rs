//! Which entry of a vector each of its positions holds.

/// How many of something there are, and how many places they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Padded {
    /// How many there are.
    pub real: u32,
    /// How many places there are for them: the last ones hold nothing.
    pub places: u32,
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// KV heads.
    pub kv_heads: Padded,
    /// Query heads that share a KV head.
    pub members: Padded,
    /// Entries of a head; both halves, between which rotary embeddings turn, are padded at their end.
    pub head_dim: Padded,
}

impl Heads {
    fn entry(&self, lane: u32) -> Option<u32> {
        let (places, real) = (self.head_dim.places / 2, self.head_dim.real / 2);
        let pair = lane % places;
        (pair < real).then_some(lane / places * real + pair)
    }
}

/// The entry of a vector that a position holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Features {
    /// Position p holds entry `offset + p` for p below the width.
    Plain {
        /// Number of entries.
        width: u32,
        /// Entry of position 0.
        offset: u32,
    },
    /// Keys and values: lane and KV head.
    KeyValue(Heads),
    /// Queries: lane, KV head, and member in order.
    Query(Heads),
    /// Attention outputs of decoding: lane l, KV head, and member (l + i) % g at place i.
    RotatedQuery(Heads),
}

impl Features {
    /// The entry at a position, if there is one.
    pub fn at(&self, position: u32) -> Option<u32> {
        match self {
            Self::Plain { width, offset } => (position < *width).then_some(offset + position),
            Self::KeyValue(heads) => {
                let (lane, head) = (position / heads.kv_heads.places, position % heads.kv_heads.places);
                let entry = heads.entry(lane)?;
                (head < heads.kv_heads.real).then_some(head * heads.head_dim.real + entry)
            }
            Self::Query(heads) | Self::RotatedQuery(heads) => {
                let (group, kv_heads) = (heads.members.places, heads.kv_heads.places);
                let lane = position / (kv_heads * group);
                let (head, place) = (position / group % kv_heads, position % group);
                let turn = if matches!(self, Self::Query(_)) { 0 } else { lane };
                let member = (place + turn) % group;
                let entry = heads.entry(lane)?;
                (head < heads.kv_heads.real && member < heads.members.real)
                    .then_some((head * heads.members.real + member) * heads.head_dim.real + entry)
            }
        }
    }

    /// Number of entries, those of a plain vector up to the end of its part.
    pub fn width(&self) -> u32 {
        match self {
            Self::Plain { width, offset } => offset + width,
            Self::KeyValue(heads) => heads.kv_heads.real * heads.head_dim.real,
            Self::Query(heads) | Self::RotatedQuery(heads) => {
                heads.kv_heads.real * heads.members.real * heads.head_dim.real
            }
        }
    }

    /// The least power of two of positions that hold all entries.
    pub fn positions(&self) -> u32 {
        match self {
            Self::Plain { width, .. } => width.next_power_of_two(),
            Self::KeyValue(heads) => heads.kv_heads.places * heads.head_dim.places,
            Self::Query(heads) | Self::RotatedQuery(heads) => {
                heads.kv_heads.places * heads.members.places * heads.head_dim.places
            }
        }
    }
}

/// A vector's positions, a power of two of them, and what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// Number of positions; position p of P lies at slot p·n/P.
    pub positions: u32,
    /// What they hold.
    pub features: Features,
}

impl Order {
    /// As many positions as the features need.
    pub fn of(features: Features) -> Self {
        Self { positions: features.positions(), features }
    }

    /// By position: the entry that it holds.
    pub(super) fn entries(&self) -> Vec<Option<u32>> {
        (0..self.positions).map(|position| self.features.at(position)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(features: Features) -> Vec<Option<u32>> {
        Order::of(features).entries()
    }

    #[test]
    fn every_entry_has_one_position() {
        let padded = |real, places| Padded { real, places };
        let heads = Heads { kv_heads: padded(3, 4), members: padded(2, 2), head_dim: padded(6, 8) };
        let plain = Features::Plain { width: 5, offset: 0 };
        for features in [plain, Features::KeyValue(heads), Features::Query(heads), Features::RotatedQuery(heads)] {
            let mut found: Vec<u32> = all(features).into_iter().flatten().collect();
            found.sort_unstable();
            assert_eq!(found, (0..features.width()).collect::<Vec<_>>(), "{features:?}");
        }
        let rest = Features::Plain { width: 3, offset: 8 };
        assert_eq!(all(rest), [Some(8), Some(9), Some(10), None]);
    }

    #[test]
    fn heads_are_interleaved() {
        let whole = |count| Padded { real: count, places: count };
        let heads = Heads { kv_heads: whole(2), members: whole(2), head_dim: whole(4) };
        // Position 0, 1, … of keys: entry 0 of head 0 and 1, entry 1 of head 0 and 1, …
        assert_eq!(all(Features::KeyValue(heads))[..4], [Some(0), Some(4), Some(1), Some(5)]);
        // Of queries: entry 0 of members 0 and 1 of head 0, then of head 1; then entry 1, whose members are turned by one.
        let first = [Some(0), Some(4), Some(8), Some(12)];
        assert_eq!(all(Features::Query(heads))[..4], first);
        assert_eq!(all(Features::RotatedQuery(heads))[..4], first);
        assert_eq!(all(Features::Query(heads))[4..8], [Some(1), Some(5), Some(9), Some(13)]);
        assert_eq!(all(Features::RotatedQuery(heads))[4..8], [Some(5), Some(1), Some(13), Some(9)]);
    }
}
