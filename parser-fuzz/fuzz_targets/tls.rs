//! Any bytes in place of a handshake: an error or silence, bounded output, no panic.
#![no_main]

use midge::tls::Session;
use std::sync::{Arc, LazyLock};

static CONFIG: LazyLock<Arc<rustls::ServerConfig>> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    Arc::new(config)
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&size, data)) = data.split_first() else {
        return;
    };
    let mut session = Session::server(CONFIG.clone()).unwrap();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    for piece in data.chunks(usize::from(size) + 1) {
        let result = session.receive(piece, &mut plain);
        session.take_output(&mut out);
        if result.is_err() {
            break;
        }
    }
    assert!(plain.is_empty() && out.len() < 64 << 10);
});
