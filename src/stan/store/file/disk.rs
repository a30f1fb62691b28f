//! What the store asks of the file system, and nothing more: std's files under names of their own.
//!
//! A build for tests also keeps a trace of every change and every sync, from which the power-loss test makes what a
//! disk may hold after a crash. Other builds have nothing of it.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

#[derive(Debug)]
pub struct File {
    file: std::fs::File,
    /// Every write is on the disk when it returns.
    synchronous: bool,
    #[cfg(test)]
    trace: Option<super::trace::Node>,
    #[cfg(test)]
    path: std::path::PathBuf,
}

impl File {
    fn new(path: &Path, file: std::fs::File, synchronous: bool) -> Self {
        let _ = path;
        Self {
            #[cfg(test)]
            trace: super::trace::opened(path),
            #[cfg(test)]
            path: path.to_owned(),
            file,
            synchronous,
        }
    }

    pub fn open(options: &OpenOptions, path: &Path) -> io::Result<Self> {
        Ok(Self::new(path, opened(path, options)?, false))
    }

    /// For reading and writing, made if it is not there.
    pub fn make(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        Self::open(&options, path)
    }

    /// For `write_durably`: past the cache where the file system can, for which pieces and their places are
    /// multiples of 4 KiB in memory and file.
    pub fn open_durable(path: &Path, direct: bool) -> io::Result<Self> {
        use nix::fcntl::OFlag;
        let flags = match direct {
            true => OFlag::O_DIRECT | OFlag::O_DSYNC,
            false => OFlag::empty(),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags.bits())
            .open(path)?;
        Ok(Self::new(path, file, direct))
    }

    pub fn fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// A write that is on the disk when it returns.
    pub fn write_durably(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        super::faults::before_sync(&self.path)?;
        #[cfg(test)]
        if self.synchronous {
            super::faults::before_direct_write(&self.path)?;
        }
        self.write_all_at(bytes, at)?;
        match self.synchronous {
            true => self.traced_sync(),
            false => self.sync_data(),
        }
    }

    pub fn set_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(node) = &self.trace {
            node.set_len(len)?;
        }
        self.file.set_len(len)
    }

    pub fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        super::faults::before_sync(&self.path)?;
        self.file.sync_data()?;
        self.traced_sync()
    }

    pub fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        super::faults::before_sync(&self.path)?;
        self.file.sync_all()?;
        self.traced_sync()
    }

    #[cfg(test)]
    fn traced_sync(&self) -> io::Result<()> {
        self.trace.as_ref().map_or(Ok(()), super::trace::Node::sync)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)]
    fn traced_sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// One without a name, which no trace follows.
#[cfg(test)]
impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        Self {
            file,
            synchronous: false,
            trace: None,
            path: Default::default(),
        }
    }
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        #[cfg(test)]
        super::faults::before_read(&self.path)?;
        self.file.read_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        #[cfg(test)]
        super::faults::before_write(&self.path, self.metadata()?.len(), at + bytes.len() as u64)?;
        let written = self.file.write_at(bytes, at)?;
        #[cfg(test)]
        if let Some(node) = &self.trace {
            node.write(&bytes[..written], at)?;
        }
        Ok(written)
    }
}

/// The system had no room for one more open file. Unlike a sync that failed, this says nothing of what the disk has.
#[derive(Debug)]
struct NotOpened(io::Error);

impl std::fmt::Display for NotOpened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotOpened {}

/// Whether it was not opened for want of descriptors or memory, and may be another time.
pub fn is_not_opened(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NotOpened>())
}

fn opened(path: &Path, options: &OpenOptions) -> io::Result<std::fs::File> {
    use nix::libc::{EMFILE, ENFILE, ENOMEM};
    #[cfg(test)]
    let opened = super::faults::before_open(path).and_then(|()| options.open(path));
    #[cfg(not(test))]
    let opened = options.open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOMEM) => io::Error::new(error.kind(), NotOpened(error)),
        _ => error,
    })
}

/// A directory, opened before its names are changed: then nothing but the sync itself can fail behind that.
#[derive(Debug)]
pub struct Folder {
    file: std::fs::File,
    #[cfg(test)]
    path: std::path::PathBuf,
}

impl Folder {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: opened(path, OpenOptions::new().read(true))?,
            #[cfg(test)]
            path: path.to_owned(),
        })
    }

    /// Names that were made, changed or removed in it are on the disk when this returns.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        super::faults::before_folder_sync(&self.path)?;
        self.file.sync_all()?;
        #[cfg(test)]
        super::trace::folder_synced(&self.path);
        Ok(())
    }

    /// Whether `sync_all` is as good as syncs one by one: some file systems, FUSE among them, do not pass it on, and an
    /// overlay does not say what failed below it.
    pub fn has_sync_all(&self) -> bool {
        use nix::sys::statfs::{
            BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
            fstatfs,
        };
        let known = [
            BTRFS_SUPER_MAGIC,
            EXT4_SUPER_MAGIC,
            F2FS_SUPER_MAGIC,
            TMPFS_MAGIC,
            XFS_SUPER_MAGIC,
        ];
        fstatfs(&self.file).is_ok_and(|found| known.contains(&found.filesystem_type()))
    }

    /// The same for everything in the file system of this directory, names and contents.
    pub fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        super::faults::before_sync(&self.path)?;
        nix::unistd::syncfs(&self.file)?;
        #[cfg(test)]
        super::trace::all_synced(&self.path);
        Ok(())
    }
}

pub fn sync_folder(path: &Path) -> io::Result<()> {
    Folder::open(path)?.sync()
}

pub fn sync_all(path: &Path) -> io::Result<()> {
    Folder::open(path)?.sync_all()
}

pub fn create_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    #[cfg(test)]
    super::trace::folder_made(path);
    Ok(())
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    #[cfg(test)]
    super::trace::renamed(from, to);
    Ok(())
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    #[cfg(test)]
    super::trace::removed(path);
    Ok(())
}

pub fn remove_folder(path: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(path)?;
    #[cfg(test)]
    super::trace::removed(path);
    Ok(())
}
