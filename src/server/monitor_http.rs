//! Sockets of the monitoring port: ordinary threads, a bounded number of them.

use super::monitor::Monitor;
use crate::monitor::http::{self, Parsed};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Monitoring connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// A request may take this long to arrive, and an answer to leave.
const TIMEOUT: Duration = Duration::from_secs(10);

pub fn start(listener: OwnedFd, monitor: Arc<Monitor>, https: bool) -> std::io::Result<()> {
    let listener = TcpListener::from(listener);
    let serving = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if serving.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
                continue;
            }
            let (monitor, serving) = (monitor.clone(), serving.clone());
            serving.fetch_add(1, Ordering::Relaxed);
            let body = {
                let serving = serving.clone();
                move || {
                    let _ = begin(stream, &monitor, https);
                    serving.fetch_sub(1, Ordering::Relaxed);
                }
            };
            if std::thread::Builder::new()
                .name("monitor".into())
                .spawn(body)
                .is_err()
            {
                serving.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::Builder::new()
        .name("monitor-accept".into())
        .spawn(accept)
        .map(drop)
}

fn begin(socket: TcpStream, monitor: &Monitor, https: bool) -> std::io::Result<()> {
    socket.set_write_timeout(Some(TIMEOUT))?;
    if !https {
        return serve(&socket, &socket, monitor);
    }
    let Some(config) = monitor.tls() else {
        return Ok(());
    };
    let session = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    serve(rustls::StreamOwned::new(session, &socket), &socket, monitor)
}

/// One connection: requests until it is closed, or too slow.
fn serve(
    mut stream: impl Read + Write,
    socket: &TcpStream,
    monitor: &Monitor,
) -> std::io::Result<()> {
    let mut input = Vec::new();
    loop {
        let until = Instant::now() + TIMEOUT;
        let (response, head_only, keep_alive) = loop {
            match http::parse(&input) {
                Parsed::Request(request, length) => {
                    input.drain(..length);
                    break (
                        monitor.answer(&request),
                        request.head_only,
                        request.keep_alive,
                    );
                }
                Parsed::Bad(response) => break (response, false, false),
                Parsed::Incomplete => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            socket.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                read => input.extend_from_slice(&chunk[..read]),
            }
        };
        let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        let answer = response.encode(&date.to_string(), head_only, keep_alive);
        stream.write_all(answer.as_bytes())?;
        stream.flush()?;
        if !keep_alive {
            return Ok(());
        }
    }
}
