//! For tests: errors of the system, for files below a path, from when they are planted until the guard goes.

use crate::util::lock;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No file grows any further.
    Full,
    /// Nor is there room for writing in place, where the file system never does so.
    NoRoom,
    /// Every read, every write, every sync is an error.
    Read,
    Write,
    Sync,
    /// Writes past the cache are not supported.
    Direct,
    /// Every sync of this folder itself.
    FolderSync,
    /// There is no descriptor left for any.
    Open,
}

static PLANTED: Mutex<Vec<(PathBuf, Fault)>> = Mutex::new(Vec::new());

fn planted() -> MutexGuard<'static, Vec<(PathBuf, Fault)>> {
    lock(&PLANTED)
}

pub struct Planted(PathBuf, Fault);

pub fn plant(path: &Path, fault: Fault) -> Planted {
    planted().push((path.to_owned(), fault));
    Planted(path.to_owned(), fault)
}

impl Drop for Planted {
    fn drop(&mut self) {
        planted().retain(|(path, fault)| (path, *fault) != (&self.0, self.1));
    }
}

fn has(path: &Path, fault: Fault) -> bool {
    planted()
        .iter()
        .any(|(below, other)| *other == fault && path.starts_with(below))
}

pub fn before_read(path: &Path) -> io::Result<()> {
    match has(path, Fault::Read) {
        true => Err(nix::Error::EIO.into()),
        false => Ok(()),
    }
}

pub fn before_open(path: &Path) -> io::Result<()> {
    match has(path, Fault::Open) {
        true => Err(nix::Error::EMFILE.into()),
        false => Ok(()),
    }
}

pub fn before_write(path: &Path, len: u64, end: u64) -> io::Result<()> {
    if has(path, Fault::Write) {
        return Err(nix::Error::EIO.into());
    }
    match end > len && has(path, Fault::Full) || has(path, Fault::NoRoom) {
        true => Err(nix::Error::ENOSPC.into()),
        false => Ok(()),
    }
}

pub fn before_folder_sync(path: &Path) -> io::Result<()> {
    let planted = planted()
        .iter()
        .any(|(folder, fault)| *fault == Fault::FolderSync && path == folder);
    match planted {
        true => Err(nix::Error::EIO.into()),
        false => before_sync(path),
    }
}

pub fn before_direct_write(path: &Path) -> io::Result<()> {
    match has(path, Fault::Direct) {
        true => Err(nix::Error::EINVAL.into()),
        false => Ok(()),
    }
}

pub fn before_sync(path: &Path) -> io::Result<()> {
    match has(path, Fault::Sync) {
        true => Err(nix::Error::EIO.into()),
        false => Ok(()),
    }
}
