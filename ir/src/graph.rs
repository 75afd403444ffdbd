//! Single-assignment graphs over dense ids, shared by the three stages.
//!
//! Invariants (checked by [`Graph::verify_structure`]): every value is defined once, by an input or by one op; an op's
//! operands are defined before it, in its own block or an enclosing one; a region's yields have the types of the op's
//! results. Ids are dense `u32` newtypes whose `Display` is the text syntax.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// The id as an index into the dense map that it belongs to.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A value: an input of the graph or a result of an op.
    ValueId,
    "%"
);
id!(
    /// An op.
    OpId,
    "@"
);
id!(
    /// An entry of the graph's table of origins.
    OriginId,
    "!"
);

/// Most blocks that may be nested in each other.
pub const MAXIMUM_NESTING: usize = 32;

/// The ONNX node that an op was made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The node's name, e.g. `/model/layers.0/self_attn/q_proj/MatMul`.
    pub node: String,
    /// The node's op type, e.g. `MatMul`.
    pub op_type: String,
}

/// A value's type and where it is defined.
#[derive(Clone, Debug, PartialEq)]
pub struct Value<T> {
    /// The stage's type of the value.
    pub ty: T,
    /// Where the value comes from.
    pub definition: Definition,
    /// A short name for people, unique where it is not empty.
    pub name: String,
}

/// Where a value is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// The n-th input of the graph.
    Input(u32),
    /// The n-th result of an op.
    Result(OpId, u32),
}

/// One op with its operands and results.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<O> {
    /// The operation.
    pub op: O,
    /// Operands, in the op's order.
    pub inputs: Vec<ValueId>,
    /// Results, in the op's order.
    pub results: Vec<ValueId>,
    /// The ONNX node this op was made from.
    pub origin: Option<OriginId>,
    /// The decoder layer that the op belongs to; none before the first and after the last, and in the tensor stage.
    pub layer: Option<u32>,
    /// The block that the op repeats, for ops with a body.
    pub region: Option<Region>,
}

/// A block nested in an op.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Region {
    /// Ops of the block, in execution order.
    pub ops: Vec<OpId>,
    /// Values handed to the enclosing op, one for each of its results.
    pub yields: Vec<ValueId>,
}

/// A graph whose ops are of type `O` and whose values are of type `T`.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph<O, T> {
    /// All values, by id.
    pub values: Vec<Value<T>>,
    /// All ops, by id.
    pub nodes: Vec<Node<O>>,
    /// Inputs, in order.
    pub inputs: Vec<ValueId>,
    /// The top block: ops in execution order, and as its yields the graph's outputs.
    pub body: Region,
    /// Table of origins.
    pub origins: Vec<Origin>,
}

impl<O, T> Default for Graph<O, T> {
    fn default() -> Self {
        Self { values: Vec::new(), nodes: Vec::new(), inputs: Vec::new(), body: Region::default(), origins: Vec::new() }
    }
}

impl<O, T> Graph<O, T> {
    /// Adds an input of the given name and type.
    pub fn add_input(&mut self, name: &str, ty: T) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let definition = Definition::Input(self.inputs.len() as u32);
        self.values.push(Value { ty, definition, name: name.to_owned() });
        self.inputs.push(id);
        id
    }

    /// Creates an op of no layer with fresh result values and returns both. The op is in no block yet: push its id to one.
    pub fn add_node(
        &mut self,
        op: O,
        inputs: Vec<ValueId>,
        result_types: Vec<T>,
        origin: Option<OriginId>,
        region: Option<Region>,
    ) -> (OpId, Vec<ValueId>) {
        let id = OpId(self.nodes.len() as u32);
        let mut results = Vec::with_capacity(result_types.len());
        for (index, ty) in result_types.into_iter().enumerate() {
            results.push(ValueId(self.values.len() as u32));
            self.values.push(Value { ty, definition: Definition::Result(id, index as u32), name: String::new() });
        }
        self.nodes.push(Node { op, inputs, results: results.clone(), origin, layer: None, region });
        (id, results)
    }

    /// The id of an origin, added to the table if it is new.
    pub fn intern_origin(&mut self, origin: Origin) -> OriginId {
        let index = self.origins.iter().position(|known| *known == origin).unwrap_or_else(|| {
            self.origins.push(origin);
            self.origins.len() - 1
        });
        OriginId(index as u32)
    }

    /// The node of an op.
    pub fn node(&self, op: OpId) -> &Node<O> {
        &self.nodes[op.index()]
    }

    /// A value's type.
    pub fn ty(&self, value: ValueId) -> &T {
        &self.values[value.index()].ty
    }

    /// The origin of an op as `op_type node`, or `-` where it has none.
    pub fn origin_text(&self, op: OpId) -> String {
        match self.node(op).origin {
            Some(id) => {
                let origin = &self.origins[id.index()];
                format!("{} {}", origin.op_type, origin.node)
            }
            None => "-".to_owned(),
        }
    }

    /// Visits every op in execution order, bodies included, with the nesting depth of its block.
    pub fn for_each_op(&self, mut visit: impl FnMut(OpId, usize)) {
        fn walk<O, T>(graph: &Graph<O, T>, block: &Region, depth: usize, visit: &mut impl FnMut(OpId, usize)) {
            for &op in &block.ops {
                visit(op, depth);
                if let Some(region) = &graph.node(op).region {
                    walk(graph, region, depth + 1, visit);
                }
            }
        }
        walk(self, &self.body, 0, &mut visit);
    }

    /// Checks that all ids are in range, that every op is in exactly one block, that every value has one definition, and
    /// that blocks are nested at most [`MAXIMUM_NESTING`] deep; returns one message for each violation. A graph that
    /// passes can be walked safely, whatever it was read from.
    pub fn check_ids(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut defined = vec![0_u32; self.values.len()];
        let mut define =
            |value: ValueId, definition: Definition, problems: &mut Vec<String>| match self.values.get(value.index()) {
                Some(known) if known.definition == definition => defined[value.index()] += 1,
                Some(_) => problems.push(format!("{value} has another definition than {definition:?}")),
                None => problems.push(format!("{value} is not in the graph")),
            };
        for (index, input) in self.inputs.iter().enumerate() {
            define(*input, Definition::Input(index as u32), &mut problems);
        }
        let mut seen = vec![false; self.nodes.len()];
        let mut blocks = vec![(&self.body, 0)];
        while let Some((block, depth)) = blocks.pop() {
            for op in &block.ops {
                match seen.get_mut(op.index()) {
                    None => problems.push(format!("{op} is not in the graph")),
                    Some(true) => problems.push(format!("{op} is in a block twice, or in two blocks")),
                    Some(seen) => {
                        *seen = true;
                        let node = self.node(*op);
                        for (index, result) in node.results.iter().enumerate() {
                            define(*result, Definition::Result(*op, index as u32), &mut problems);
                        }
                        if node.origin.is_some_and(|origin| origin.index() >= self.origins.len()) {
                            problems.push(format!("{op} has an origin that is not in the graph"));
                        }
                        match &node.region {
                            Some(_) if depth == MAXIMUM_NESTING => {
                                problems.push(format!("{op} is nested more than {MAXIMUM_NESTING} blocks deep"));
                            }
                            Some(region) => blocks.push((region, depth + 1)),
                            None => {}
                        }
                    }
                }
            }
        }
        for (index, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            problems.push(format!("{} is in no block", OpId(index as u32)));
        }
        for (index, _) in defined.iter().enumerate().filter(|(_, count)| **count != 1) {
            problems.push(format!("{} is not defined exactly once", ValueId(index as u32)));
        }
        problems
    }

    /// Drops ops, values and origins that no block mentions, and numbers the others in execution order; an op with a body
    /// comes after the ops of its body.
    pub fn compact(&mut self) {
        fn walk<O, T>(graph: &Graph<O, T>, block: &Region, order: &mut Vec<OpId>) {
            for &op in &block.ops {
                if let Some(region) = &graph.node(op).region {
                    walk(graph, region, order);
                }
                order.push(op);
            }
        }
        let old = std::mem::take(self);
        let mut order = Vec::new();
        walk(&old, &old.body, &mut order);
        let mut ops = vec![OpId(0); old.nodes.len()];
        for (index, op) in order.iter().enumerate() {
            ops[op.index()] = OpId(index as u32);
        }
        let results = order.iter().flat_map(|op| old.node(*op).results.iter());
        let kept: Vec<ValueId> = old.inputs.iter().chain(results).copied().collect();
        let mut values = vec![ValueId(0); old.values.len()];
        for (index, value) in kept.iter().enumerate() {
            values[value.index()] = ValueId(index as u32);
        }
        let renamed = |ids: &[ValueId]| ids.iter().map(|id| values[id.index()]).collect::<Vec<_>>();
        let region = |block: &Region| Region {
            ops: block.ops.iter().map(|op| ops[op.index()]).collect(),
            yields: renamed(&block.yields),
        };
        let inputs = renamed(&old.inputs);
        let body = region(&old.body);
        *self = Self { inputs, body, ..Self::default() };
        let mut nodes: Vec<Option<Node<O>>> = old.nodes.into_iter().map(Some).collect();
        for op in &order {
            let Some(node) = nodes[op.index()].take() else { continue };
            let origin = node.origin.map(|origin| self.intern_origin(old.origins[origin.index()].clone()));
            self.nodes.push(Node {
                inputs: renamed(&node.inputs),
                results: renamed(&node.results),
                origin,
                layer: node.layer,
                region: node.region.as_ref().map(&region),
                op: node.op,
            });
        }
        let mut old_values: Vec<Option<Value<T>>> = old.values.into_iter().map(Some).collect();
        for value in &kept {
            let Some(mut value) = old_values[value.index()].take() else { continue };
            if let Definition::Result(op, _) = &mut value.definition {
                *op = ops[op.index()];
            }
            self.values.push(value);
        }
    }

    /// Checks the structural invariants of the module docs; returns one message for each violation.
    pub fn verify_structure(&self) -> Vec<String> {
        let problems = self.check_ids();
        if !problems.is_empty() {
            return problems;
        }
        let mut visible = vec![false; self.values.len()];
        for input in &self.inputs {
            visible[input.index()] = true;
        }
        let mut problems = Vec::new();
        self.verify_block(&self.body, &mut visible, &mut problems);
        problems
    }

    fn verify_block(&self, block: &Region, visible: &mut [bool], problems: &mut Vec<String>) {
        let mut defined_here = Vec::new();
        for &op in &block.ops {
            let Some(node) = self.nodes.get(op.index()) else {
                problems.push(format!("{op} is not in the graph"));
                continue;
            };
            for input in &node.inputs {
                if !visible.get(input.index()).copied().unwrap_or(false) {
                    problems.push(format!("{op} uses {input} before its definition"));
                }
            }
            if let Some(region) = &node.region {
                self.verify_block(region, visible, problems);
                if region.yields.len() != node.results.len() {
                    problems.push(format!(
                        "{op} has {} results and yields {}",
                        node.results.len(),
                        region.yields.len()
                    ));
                }
            }
            for (index, result) in node.results.iter().enumerate() {
                match self.values.get(result.index()) {
                    Some(value) if value.definition == Definition::Result(op, index as u32) => {
                        visible[result.index()] = true;
                        defined_here.push(*result);
                    }
                    _ => problems.push(format!("{result} is not the {index}-th result of {op}")),
                }
            }
        }
        for value in &block.yields {
            if !visible.get(value.index()).copied().unwrap_or(false) {
                problems.push(format!("yield of undefined {value}"));
            }
        }
        // A body's values are out of scope after it; the top block is never left.
        if !std::ptr::eq(block, &raw const self.body) {
            for value in defined_here {
                visible[value.index()] = false;
            }
        }
    }
}
