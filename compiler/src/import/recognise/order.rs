//! In which order the entries of a signal lie: token after token, or head after head.

use super::{Recogniser, Signal};
use crate::import::dense::broadcast_indices;

/// Order of the entries of a tensor that holds a vector of features for each of several tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `[tokens, features]`
    Tokens,
    /// `[heads, tokens, dim]`, feature `head·dim + d`.
    Heads { dim: usize },
}

impl Order {
    /// Where a token's feature lies among those of `tokens` tokens of `width` features.
    pub(super) fn position(self, (tokens, width): (usize, usize), token: usize, feature: usize) -> usize {
        match self {
            Self::Tokens => token * width + feature,
            Self::Heads { dim } => (feature / dim * tokens + token) * dim + feature % dim,
        }
    }

    /// The token and the feature at a position.
    fn at(self, (tokens, width): (usize, usize), position: usize) -> (usize, usize) {
        match self {
            Self::Tokens => (position / width, position % width),
            Self::Heads { dim } => (position / dim % tokens, position / (tokens * dim) * dim + position % dim),
        }
    }
}

/// Which features of its base a signal holds for each token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Features {
    /// All of them in order.
    All,
    /// These.
    Some(Vec<usize>),
}

impl Features {
    /// Features of the base of a signal that is the base of a signal with these.
    pub(super) fn of(&self, inner: Option<&Vec<usize>>) -> Option<Vec<usize>> {
        match (self, inner) {
            (Self::All, inner) => inner.cloned(),
            (Self::Some(outer), None) => Some(outer.clone()),
            (Self::Some(outer), Some(inner)) => Some(outer.iter().map(|&feature| inner[feature]).collect()),
        }
    }
}

/// The features of its base that a signal holds, the same for each of `tokens` tokens; `None` if tokens are mixed or
/// entries negated.
pub(super) fn features(signal: &Signal, tokens: usize, order: Order, base_order: Order) -> Option<Features> {
    let (len, base_len) = (signal.len(), signal.base_len);
    if tokens == 0 || !len.is_multiple_of(tokens) || !base_len.is_multiple_of(tokens) || len == 0 {
        return (len == 0 && base_len == 0).then_some(Features::All);
    }
    let (shape, base_shape) = ((tokens, len / tokens), (tokens, base_len / tokens));
    for (order, (_, width)) in [(order, shape), (base_order, base_shape)] {
        if let Order::Heads { dim } = order
            && (dim == 0 || !width.is_multiple_of(dim))
        {
            return None;
        }
    }
    let entry = |token: usize, feature: usize| -> Option<(usize, usize)> {
        let position = order.position(shape, token, feature);
        let index = signal.map.as_ref().map_or(Some(position), |map| usize::try_from(map[position] - 1).ok())?;
        Some(base_order.at(base_shape, index))
    };
    let mut found = Vec::with_capacity(shape.1);
    for feature in 0..shape.1 {
        let (token, base_feature) = entry(0, feature)?;
        let same = token == 0 && (1..tokens).all(|token| entry(token, feature) == Some((token, base_feature)));
        if !same {
            return None;
        }
        found.push(base_feature);
    }
    let all = base_shape.1 == shape.1 && found.iter().enumerate().all(|(index, &feature)| index == feature);
    Some(if all { Features::All } else { Features::Some(found) })
}

/// The order of a tensor of `tokens` tokens that is combined by broadcasting with a constant that has an entry for each
/// feature and, with `by_token`, for each token; with `dim`, the same for each head of so many entries.
pub(super) fn order_of_operand(
    constant: &[usize],
    shape: &[usize],
    tokens: usize,
    by_token: bool,
    dim: Option<usize>,
) -> Option<Order> {
    let width = shape.iter().product::<usize>().checked_div(tokens)?;
    let indices = (constant.len() <= shape.len()).then(|| broadcast_indices(constant, shape))?;
    let heads = Order::Heads { dim: dim.or(shape.last().copied()).filter(|&dim| dim > 0)? };
    let period = dim.unwrap_or(width);
    [Order::Tokens, heads].into_iter().find(|order| {
        (0..tokens).all(|token| {
            (0..width).all(|feature| {
                let row = if by_token { token * period } else { 0 };
                indices.get(order.position((tokens, width), token, feature)) == Some(&(row + feature % period))
            })
        })
    })
}

impl Recogniser<'_, '_> {
    /// New tokens of a call.
    pub(super) fn tokens(self) -> usize {
        self.specialised.sizes.sequence
    }

    /// Past and new tokens.
    pub(super) fn total(self) -> usize {
        self.specialised.sizes.past + self.specialised.sizes.sequence
    }

    /// The features of its base that a signal of all new tokens holds.
    pub(super) fn features(self, signal: &Signal, order: Order, base_order: Order) -> Option<Features> {
        features(signal, self.tokens(), order, base_order)
    }
}
