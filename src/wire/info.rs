//! The body of INFO: gnatsd 1.1.0's fields in its order, then those of 2.x that are true for us.

use crate::util::go_json::go_json;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    pub server_id: String,
    pub version: String,
    pub git_commit: String,
    /// gnatsd names its Go version here; clients only display it.
    pub go: String,
    pub host: String,
    pub port: u16,
    pub auth_required: bool,
    pub tls_required: bool,
    pub tls_verify: bool,
    pub max_payload: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub proto: u8,
    #[serde(skip_serializing_if = "is_false")]
    pub headers: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    #[serde(skip_serializing_if = "is_false")]
    pub ldm: bool,
    #[serde(skip_serializing_if = "is_no_client")]
    pub client_id: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_ip: String,
    /// Name of the cluster, for clients.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u8) -> bool {
    *value == 0
}

fn is_no_client(value: &u64) -> bool {
    *value == 0
}

impl Info {
    /// The line for a client: gnatsd puts a blank before CRLF here (and not on routes).
    pub fn client_line(&self) -> String {
        format!("INFO {} \r\n", go_json(self))
    }

    pub fn route_line(&self) -> String {
        format!("INFO {}\r\n", go_json(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_in_the_order_of_the_original() {
        let info = Info {
            server_id: "amTKtnlAo9RQ0IVGiyFZaV".into(),
            version: "1.1.0".into(),
            host: "127.0.0.1".into(),
            port: 21001,
            max_payload: 1048576,
            ..Info::default()
        };
        assert_eq!(
            info.client_line(),
            "INFO {\"server_id\":\"amTKtnlAo9RQ0IVGiyFZaV\",\"version\":\"1.1.0\",\"git_commit\":\"\",\
             \"go\":\"\",\"host\":\"127.0.0.1\",\"port\":21001,\"auth_required\":false,\
             \"tls_required\":false,\"tls_verify\":false,\"max_payload\":1048576} \r\n"
        );
    }
}
