//! Wildcard patterns as a trie of tokens.
//!
//! `*` and `>` are direct links of a node; its other children stand in one hash table for the whole
//! trie, keyed by parent and token, so that a node costs the same however many children it has. The
//! walk keeps its own stack: neither deep subjects nor deep patterns recurse, and no node is visited
//! twice for one subject.

use super::token::tokens;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;
use std::hash::{BuildHasher, Hasher};

const ROOT: u32 = 0;

#[derive(Debug, Default)]
struct Node {
    parent: u32,
    /// The token that leads here from the parent; `*` when this is its star link.
    token: Box<[u8]>,
    is_star: bool,
    star: Option<u32>,
    /// Children in the hash table.
    children: u32,
    /// What stands at the pattern that ends here, and at the one that ends here with `>`.
    here: Option<u32>,
    rest: Option<u32>,
}

impl Node {
    fn is_unused(&self) -> bool {
        self.star.is_none() && self.children == 0 && self.here.is_none() && self.rest.is_none()
    }
}

#[derive(Debug)]
pub struct Trie {
    hash: FixedState,
    nodes: Slab<Node>,
    children: HashTable<u32>,
    patterns: usize,
    /// Branches of the walk yet to be taken: node and offset of the token it is about.
    stack: Vec<(u32, u32)>,
}

fn hash(state: &FixedState, parent: u32, token: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(token);
    hasher.write_u32(parent);
    hasher.finish()
}

impl Trie {
    pub fn new(seed: u64) -> Self {
        let mut nodes = Slab::new();
        assert_eq!(nodes.insert(Node::default()) as u32, ROOT);
        Self {
            hash: FixedState::with_seed(seed),
            nodes,
            children: HashTable::new(),
            patterns: 0,
            stack: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.patterns == 0
    }

    /// Nothing is kept for a pattern that went.
    pub fn is_bare(&self) -> bool {
        self.nodes.len() == 1 && self.children.is_empty() && self.nodes[ROOT as usize].is_unused()
    }

    #[inline(always)]
    fn child(&self, parent: u32, token: &[u8]) -> Option<u32> {
        let hash = hash(&self.hash, parent, token);
        self.children
            .find(hash, |id| {
                let node = &self.nodes[*id as usize];
                node.parent == parent && *node.token == *token
            })
            .copied()
    }

    /// Puts a pattern in that is not there yet; returns its node for `remove`.
    pub fn insert(&mut self, pattern: &[u8], value: u32) -> u32 {
        self.patterns += 1;
        let mut at = ROOT;
        let mut rest = tokens(pattern).peekable();
        while let Some(token) = rest.next() {
            if token == b">" && rest.peek().is_none() {
                self.nodes[at as usize].rest = Some(value);
                return at;
            }
            at = self.child_or_new(at, token);
        }
        self.nodes[at as usize].here = Some(value);
        at
    }

    fn child_or_new(&mut self, parent: u32, token: &[u8]) -> u32 {
        let is_star = token == b"*";
        let known = if is_star {
            self.nodes[parent as usize].star
        } else {
            self.child(parent, token)
        };
        if let Some(known) = known {
            return known;
        }
        let token: Box<[u8]> = if is_star {
            Box::default()
        } else {
            token.into()
        };
        let hashed = hash(&self.hash, parent, &token);
        let id = self.nodes.insert(Node {
            parent,
            token,
            is_star,
            ..Node::default()
        }) as u32;
        if is_star {
            self.nodes[parent as usize].star = Some(id);
        } else {
            self.nodes[parent as usize].children += 1;
            let Self {
                hash: state,
                nodes,
                children,
                ..
            } = self;
            children.insert_unique(hashed, id, |id| {
                let node = &nodes[*id as usize];
                hash(state, node.parent, &node.token)
            });
        }
        id
    }

    /// Takes out what `insert` put at this node, and the nodes nobody needs any more.
    pub fn remove(&mut self, node: u32, value: u32) {
        self.patterns -= 1;
        let place = &mut self.nodes[node as usize];
        if place.here == Some(value) {
            place.here = None;
        } else {
            assert_eq!(
                place.rest.take(),
                Some(value),
                "the pattern stands at its node"
            );
        }
        let mut at = node;
        while at != ROOT && self.nodes[at as usize].is_unused() {
            let Node {
                parent,
                token,
                is_star,
                ..
            } = self.nodes.remove(at as usize);
            if is_star {
                self.nodes[parent as usize].star = None;
            } else {
                self.nodes[parent as usize].children -= 1;
                let hash = hash(&self.hash, parent, &token);
                match self.children.find_entry(hash, |id| *id == at) {
                    Ok(entry) => drop(entry.remove()),
                    Err(_) => unreachable!("every child stands in the table"),
                }
            }
            at = parent;
        }
    }

    /// Adds what stands at all patterns that match.
    #[inline]
    pub fn matches(&mut self, subject: &[u8], mut found: impl FnMut(u32)) {
        let mut stack = std::mem::take(&mut self.stack);
        let (mut at, mut offset) = (ROOT, 0usize);
        loop {
            let node = &self.nodes[at as usize];
            // `offset` is one past the end when no token is left.
            let next = if offset > subject.len() {
                if let Some(value) = node.here {
                    found(value);
                }
                None
            } else {
                if let Some(value) = node.rest {
                    found(value);
                }
                if node.star.is_none() && node.children == 0 {
                    None
                } else {
                    let length =
                        memchr::memchr(b'.', &subject[offset..]).unwrap_or(subject.len() - offset);
                    let behind = offset + length + 1;
                    let literal = match node.children {
                        0 => None,
                        _ => self.child(at, &subject[offset..offset + length]),
                    };
                    match (node.star, literal) {
                        (Some(star), Some(literal)) => {
                            stack.push((star, behind as u32));
                            Some((literal, behind))
                        }
                        (Some(next), None) | (None, Some(next)) => Some((next, behind)),
                        (None, None) => None,
                    }
                }
            };
            match next.or_else(|| stack.pop().map(|(node, offset)| (node, offset as usize))) {
                Some(next) => (at, offset) = next,
                None => break,
            }
        }
        self.stack = stack;
    }
}
