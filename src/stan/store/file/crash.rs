//! For tests: what a disk may hold when the power goes, made from a trace of what was asked of it.
//!
//! Of a file, what was synced is there; of later writes any sectors, and any length between. Of a folder, the names
//! synced are there; of later changes the first few, in their order.

use super::trace::{Before, NodeId, Op};
use crate::util::random::Random;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(NodeId),
    Folder(usize),
}

#[derive(Default)]
struct Folder {
    durable: BTreeMap<String, Entry>,
    current: BTreeMap<String, Entry>,
    /// Changes that happen as one.
    pending: Vec<Vec<(String, Option<Entry>)>>,
}

impl Folder {
    fn change(&mut self, changes: Vec<(String, Option<Entry>)>) {
        apply(&mut self.current, &changes);
        self.pending.push(changes);
    }

    fn sync(&mut self) {
        self.durable = self.current.clone();
        self.pending.clear();
    }
}

fn apply(entries: &mut BTreeMap<String, Entry>, changes: &[(String, Option<Entry>)]) {
    for (name, entry) in changes {
        match entry {
            Some(entry) => drop(entries.insert(name.clone(), *entry)),
            None => drop(entries.remove(name)),
        }
    }
}

#[derive(Default)]
struct Node {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

fn write(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A disk as the operations of a trace left it.
pub struct Disk {
    root: PathBuf,
    folders: Vec<Folder>,
    nodes: BTreeMap<NodeId, Node>,
    /// A planted fault: syncs do nothing.
    ignores_syncs: bool,
}

impl Disk {
    pub fn new(root: &Path, before: &Before, ignores_syncs: bool) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            folders: vec![Folder::default()],
            nodes: BTreeMap::new(),
            ignores_syncs,
        };
        before
            .folders
            .iter()
            .for_each(|path| disk.make_folder(path));
        for (path, id, bytes) in &before.files {
            let (durable, current) = (bytes.clone(), bytes.clone());
            let pending = Vec::new();
            disk.nodes.insert(
                *id,
                Node {
                    durable,
                    current,
                    pending,
                },
            );
            disk.change(path, Some(Entry::File(*id)));
        }
        disk.folders.iter_mut().for_each(Folder::sync);
        disk
    }

    fn find(&self, path: &Path) -> Option<Entry> {
        let below = path.strip_prefix(&self.root).expect("traced");
        let mut here = Entry::Folder(0);
        for name in below.iter() {
            let Entry::Folder(id) = here else {
                return None;
            };
            let name = name.to_str().expect("ours");
            here = *self.folders[id].current.get(name)?;
        }
        Some(here)
    }

    fn parent(&self, path: &Path) -> (usize, String) {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(Entry::Folder(id)) = self.find(path.parent().expect("below the root")) else {
            panic!("{} has no folder", path.display());
        };
        (id, name.expect("ours").to_owned())
    }

    fn change(&mut self, path: &Path, entry: Option<Entry>) {
        let (folder, name) = self.parent(path);
        self.folders[folder].change(vec![(name, entry)]);
    }

    fn make_folder(&mut self, path: &Path) {
        if path != self.root && self.find(path).is_none() {
            self.folders.push(Folder::default());
            self.change(path, Some(Entry::Folder(self.folders.len() - 1)));
        }
    }

    pub fn take(&mut self, op: &Op) {
        match op {
            Op::Made(path, id) => {
                self.nodes.entry(*id).or_default();
                self.change(path, Some(Entry::File(*id)));
            }
            Op::Write(id, at, bytes) => {
                let node = self.nodes.get_mut(id).expect("made before");
                write(&mut node.current, *at as usize, bytes);
                node.pending.push(Change::Write(*at, bytes.clone()));
            }
            Op::SetLen(id, len) => {
                let node = self.nodes.get_mut(id).expect("made before");
                if node.current.len() as u64 != *len {
                    node.current.resize(*len as usize, 0);
                    node.pending.push(Change::SetLen(*len));
                }
            }
            Op::Sync(id) if !self.ignores_syncs => {
                self.nodes.get_mut(id).expect("made before").sync();
            }
            Op::FolderSynced(path) if !self.ignores_syncs => {
                // What is above the root is not ours.
                if path.starts_with(&self.root)
                    && let Some(Entry::Folder(id)) = self.find(path)
                {
                    self.folders[id].sync();
                }
            }
            Op::AllSynced if !self.ignores_syncs => {
                self.nodes.values_mut().for_each(Node::sync);
                self.folders.iter_mut().for_each(Folder::sync);
            }
            Op::Sync(_) | Op::FolderSynced(_) | Op::AllSynced => {}
            Op::FolderMade(path) => self.make_folder(path),
            Op::Renamed(from, to) => {
                let entry = self.find(from);
                let ((source, old), (target, new)) = (self.parent(from), self.parent(to));
                if source == target {
                    self.folders[source].change(vec![(new, entry), (old, None)]);
                } else {
                    // The old name may stay; it must not go alone.
                    self.folders[target].change(vec![(new, entry)]);
                    self.folders[source].current.remove(&old);
                }
            }
            Op::Removed(path) => {
                if let Some(Entry::Folder(id)) = self.find(path) {
                    let names: Vec<String> = self.folders[id].current.keys().cloned().collect();
                    names
                        .iter()
                        .for_each(|name| self.folders[id].change(vec![(name.clone(), None)]));
                }
                self.change(path, None);
            }
        }
    }

    /// Writes to a new directory what may be left of it all.
    pub fn after_power_loss(mut self, to: &Path, random: &mut Random) {
        for folder in &mut self.folders {
            let kept = random.below(folder.pending.len() as u32 + 1) as usize;
            for changes in &folder.pending[..kept] {
                apply(&mut folder.durable, changes);
            }
        }
        self.lay_out(0, to, random);
    }

    fn lay_out(&self, folder: usize, to: &Path, random: &mut Random) {
        std::fs::create_dir_all(to).unwrap();
        for (name, entry) in &self.folders[folder].durable {
            let path = to.join(name);
            match entry {
                Entry::Folder(id) => self.lay_out(*id, &path, random),
                Entry::File(id) => std::fs::write(path, self.nodes[id].left(random)).unwrap(),
            }
        }
    }
}

impl Node {
    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    fn left(&self, random: &mut Random) -> Vec<u8> {
        match random.below(4) {
            0 => self.durable.clone(),
            1 => self.current.clone(),
            // The first changes, the last of them torn.
            2 => {
                let kept = random.below(self.pending.len() as u32 + 1) as usize;
                let mut content = self.durable.clone();
                for (nth, change) in self.pending[..kept].iter().enumerate() {
                    let torn = nth + 1 == kept;
                    apply_change(&mut content, change, |_| !torn || random.below(2) == 0);
                }
                content
            }
            // Any sectors, and any length between those it had.
            _ => {
                let mut content = self.durable.clone();
                let (mut shortest, mut longest) = (content.len(), content.len());
                for change in &self.pending {
                    apply_change(&mut content, change, |_| random.below(3) > 0);
                    shortest = shortest.min(content.len());
                    longest = longest.max(content.len());
                }
                let len = shortest + random.below((longest - shortest) as u32 + 1) as usize;
                if random.below(2) == 0 {
                    content.resize(len, 0);
                }
                content
            }
        }
    }
}

fn apply_change(content: &mut Vec<u8>, change: &Change, mut kept: impl FnMut(usize) -> bool) {
    match change {
        Change::SetLen(len) => {
            if kept(0) {
                content.resize(*len as usize, 0);
            }
        }
        Change::Write(at, bytes) => {
            let (mut from, at) = (0, *at as usize);
            while from < bytes.len() {
                // Up to the end of the sector of the disk.
                let end = bytes.len().min(((at + from) / SECTOR + 1) * SECTOR - at);
                if kept(at + from) {
                    write(content, at + from, &bytes[from..end]);
                }
                from = end;
            }
        }
    }
}
