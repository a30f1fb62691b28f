//! For tests: a trace of what happens to files below a directory.

use crate::util::lock;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub type NodeId = usize;

#[derive(Clone, Debug)]
pub enum Op {
    /// A file has this name from now on: a new one, or one that was there when the trace began.
    Made(PathBuf, NodeId),
    Write(NodeId, u64, Vec<u8>),
    SetLen(NodeId, u64),
    Sync(NodeId),
    FolderMade(PathBuf),
    FolderSynced(PathBuf),
    AllSynced,
    Renamed(PathBuf, PathBuf),
    /// A file, or a folder with everything in it.
    Removed(PathBuf),
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    nodes: usize,
    names: BTreeMap<PathBuf, NodeId>,
    before: Before,
}

/// What was there, and on the disk, when the trace began.
#[derive(Clone, Default)]
pub struct Before {
    pub folders: Vec<PathBuf>,
    pub files: Vec<(PathBuf, NodeId, Vec<u8>)>,
}

/// Everything below a root.
#[derive(Clone)]
pub struct Trace {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

static TRACES: Mutex<Vec<Trace>> = Mutex::new(Vec::new());

fn of(path: &Path) -> Option<Trace> {
    let traces = lock(&TRACES);
    traces
        .iter()
        .find(|trace| path.starts_with(&trace.root))
        .cloned()
}

impl Trace {
    /// Begins one; it ends with `end`.
    pub fn begin(root: &Path) -> Self {
        let mut state = State::default();
        state.look(root);
        let trace = Self {
            root: root.to_owned(),
            state: Arc::new(Mutex::new(state)),
        };
        lock(&TRACES).push(trace.clone());
        trace
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn before(&self) -> Before {
        lock(&self.state).before.clone()
    }

    pub fn end(&self) {
        lock(&TRACES).retain(|other| other.root != self.root);
    }

    pub fn op_count(&self) -> usize {
        lock(&self.state).ops.len()
    }

    pub fn ops(&self) -> Vec<Op> {
        lock(&self.state).ops.clone()
    }

    fn push(&self, op: Op) {
        lock(&self.state).ops.push(op);
    }
}

impl State {
    fn look(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.before.folders.push(path.clone());
                self.look(&path);
                continue;
            }
            let (id, bytes) = (self.nodes, std::fs::read(&path).unwrap());
            self.nodes += 1;
            self.names.insert(path.clone(), id);
            self.before.files.push((path, id, bytes));
        }
    }
}

/// A traced file.
#[derive(Debug)]
pub struct Node {
    trace: Trace,
    id: NodeId,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "trace of {}", self.root.display())
    }
}

impl Node {
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.trace.push(Op::Write(self.id, at, bytes.to_vec()));
        Ok(())
    }

    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.trace.push(Op::SetLen(self.id, len));
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        self.trace.push(Op::Sync(self.id));
        Ok(())
    }
}

pub fn opened(path: &Path) -> Option<Node> {
    let trace = of(path)?;
    let id = {
        let mut state = lock(&trace.state);
        match state.names.get(path) {
            Some(id) => *id,
            None => {
                let id = state.nodes;
                state.nodes += 1;
                state.names.insert(path.to_owned(), id);
                state.ops.push(Op::Made(path.to_owned(), id));
                id
            }
        }
    };
    Some(Node { trace, id })
}

pub fn folder_made(path: &Path) {
    if let Some(trace) = of(path) {
        trace.push(Op::FolderMade(path.to_owned()));
    }
}

pub fn folder_synced(path: &Path) {
    if let Some(trace) = of(path) {
        trace.push(Op::FolderSynced(path.to_owned()));
    }
}

pub fn all_synced(path: &Path) {
    if let Some(trace) = of(path) {
        trace.push(Op::AllSynced);
    }
}

pub fn renamed(from: &Path, to: &Path) {
    if let Some(trace) = of(from) {
        let mut state = lock(&trace.state);
        // A file, or everything in a folder.
        let moved = |path: &PathBuf| path.strip_prefix(from).ok().map(|below| to.join(below));
        let names = std::mem::take(&mut state.names).into_iter();
        let names = names.filter(|(name, _)| name != to || name == from);
        state.names = names
            .map(|(name, id)| match moved(&name) {
                Some(_) if name == from => (to.to_owned(), id),
                Some(new) => (new, id),
                None => (name, id),
            })
            .collect();
        state.ops.push(Op::Renamed(from.to_owned(), to.to_owned()));
    }
}

pub fn removed(path: &Path) {
    if let Some(trace) = of(path) {
        let mut state = lock(&trace.state);
        state.names.retain(|name, _| !name.starts_with(path));
        state.ops.push(Op::Removed(path.to_owned()));
    }
}
