//! server.dat: who the server is, which clients know by subjects. Without it nothing else is of use, so a copy is kept
//! in server.dat.copy. The file is also what one process locks to keep others out.

use super::damage::{Damage, keep_copy};
use super::messages::unsupported_version;
use super::records::{Crc, HEADER_BYTES, VERSION, payload_of, put_untyped};
use super::{disk, io_error, sync_error};
use crate::stan::pb;
use crate::stan::store::StoreError;
use nix::fcntl::{Flock, FlockArg};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Nobody has names of that many bytes.
const SIZE_MAX: u64 = 1 << 20;

pub struct Identity {
    path: PathBuf,
    copy: PathBuf,
    /// Held as long as the store is open: no two processes may write to one directory.
    file: Flock<File>,
}

/// What the files say.
pub enum Known {
    Info(Box<pb::ServerInfo>),
    Nothing,
    /// There was something, and it is of no use any more. It has been reported.
    Lost,
}

/// What one file says.
enum Content {
    Info(Box<pb::ServerInfo>),
    Nothing,
    Damaged(u64, String),
}

impl Identity {
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("server.dat");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .open(&path)
            .map_err(|error| io_error("opening", &path, error))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            StoreError::Refused(format!(
                "{} is in use by another process ({error}): stop it first",
                path.display()
            ))
        })?;
        Ok(Self {
            copy: root.join("server.dat.copy"),
            path,
            file,
        })
    }

    /// Reads the file, or its copy when the file is damaged; brings both in line.
    pub fn read(&self, crc: &Crc, damage: &Damage) -> Result<Known, StoreError> {
        let reading = |error| io_error("reading", &self.path, error);
        let content = read(&self.file, crc).map_err(reading)?;
        let copy = File::open(&self.copy).and_then(|file| read(&file, crc));
        match (content, copy) {
            (Content::Info(info), Ok(Content::Info(copy))) if info == copy => Ok(Known::Info(info)),
            (Content::Info(info), _) => {
                // Made by a server that keeps no copy, or the copy is damaged.
                if let Err(error) = self.write_copy(&encode(&info, crc)) {
                    log::warn!("STREAM: {error}");
                }
                Ok(Known::Info(info))
            }
            (Content::Damaged(offset, why), copy) => {
                damage.found(&self.path, offset, why)?;
                let len = self.file.metadata().map_err(reading)?.len();
                match disk::File::make(&self.path) {
                    Ok(file) => keep_copy(&file, &self.path, 0, len),
                    Err(error) => log::error!("STREAM: {}: {error}", self.path.display()),
                }
                match copy {
                    Ok(Content::Info(info)) => self.restore(info, crc).map(Known::Info),
                    _ => Ok(Known::Lost),
                }
            }
            (Content::Nothing, Ok(Content::Info(info))) => {
                damage.found(&self.path, 0, "the record is missing")?;
                self.restore(info, crc).map(Known::Info)
            }
            (Content::Nothing, _) => Ok(Known::Nothing),
        }
    }

    fn restore(
        &self,
        info: Box<pb::ServerInfo>,
        crc: &Crc,
    ) -> Result<Box<pb::ServerInfo>, StoreError> {
        log::warn!(
            "STREAM: {} is restored from {}",
            self.path.display(),
            self.copy.display()
        );
        self.write(&encode(&info, crc))?;
        Ok(info)
    }

    pub fn save(&self, info: &pb::ServerInfo, crc: &Crc) -> Result<(), StoreError> {
        let bytes = encode(info, crc);
        self.write(&bytes)?;
        self.write_copy(&bytes)?;
        // And their names, and that of the directory, which may be new.
        let sync = || {
            let root = self.path.canonicalize()?;
            root.ancestors()
                .skip(1)
                .take(2)
                .try_for_each(disk::sync_folder)
        };
        sync().map_err(|error| sync_error("syncing the directory of", &self.path, error))
    }

    fn write(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let write = |file: disk::File| {
            file.set_len(bytes.len() as u64)?;
            file.write_all_at(bytes, 0)?;
            file.sync_all()
        };
        disk::File::make(&self.path)
            .and_then(write)
            .map_err(|error| io_error("writing", &self.path, error))
    }

    fn write_copy(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            let file = disk::File::make(&self.copy)?;
            file.set_len(0)?;
            file.write_all_at(bytes, 0)?;
            file.sync_all()
        };
        write().map_err(|error| io_error("writing", &self.copy, error))
    }
}

fn encode(info: &pb::ServerInfo, crc: &Crc) -> Vec<u8> {
    let mut bytes = VERSION.to_vec();
    put_untyped(&mut bytes, crc, &info.encode_to_vec());
    bytes
}

fn read(file: &File, crc: &Crc) -> io::Result<Content> {
    const BEGIN: usize = VERSION.len();
    let len = file.metadata()?.len();
    if len > SIZE_MAX {
        return Ok(Content::Damaged(0, format!("{len} bytes are too many")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    if bytes.len() <= BEGIN || bytes.iter().all(|byte| *byte == 0) {
        return Ok(Content::Nothing);
    }
    if bytes[..BEGIN] != VERSION {
        return Ok(Content::Damaged(0, unsupported_version(&bytes)));
    }
    let size = bytes[BEGIN..]
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes);
    let expected = BEGIN + HEADER_BYTES + size.unwrap_or(0) as usize;
    if size.is_none() || bytes.len() != expected {
        let why = format!(
            "incorrect file size, expected {expected} bytes, got {} bytes",
            bytes.len()
        );
        return Ok(Content::Damaged(BEGIN as u64, why));
    }
    let payload = payload_of(&bytes[BEGIN..], crc);
    Ok(match payload.map(pb::ServerInfo::decode) {
        Some(Ok(info)) => Content::Info(info.into()),
        Some(Err(error)) => Content::Damaged(BEGIN as u64, error.to_string()),
        None => Content::Damaged(BEGIN as u64, "the record does not fit its checksum".into()),
    })
}
