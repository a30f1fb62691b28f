//! Requests and responses of the monitoring port, without sockets.

/// Heads longer than this are refused.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    pub query: String,
    /// HEAD: the same answer without its body.
    pub head_only: bool,
    pub keep_alive: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request, and how many bytes its head took.
    Request(Request, usize),
    Incomplete,
    Bad(Response),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub kind: &'static str,
    pub body: String,
}

impl Response {
    pub const JSON: &str = "application/json";

    pub fn json(body: String) -> Self {
        Self {
            status: 200,
            kind: Self::JSON,
            body,
        }
    }

    pub fn html(body: String) -> Self {
        Self {
            status: 200,
            kind: "text/html; charset=utf-8",
            body,
        }
    }

    pub fn text(status: u16, body: &str) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: body.to_owned(),
        }
    }

    pub fn not_found() -> Self {
        Self::text(404, "404 page not found\n")
    }

    /// What stands before the body; `date` is that of the answer, as HTTP writes it.
    pub fn head(&self, date: &str, keep_alive: bool) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            431 => "Request Header Fields Too Large",
            500 => "Internal Server Error",
            503 => "Service Unavailable",
            _ => "",
        };
        let connection = if keep_alive {
            ""
        } else {
            "Connection: close\r\n"
        };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\nDate: {date}\r\n{connection}Content-Length: {}\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
    }
}

pub fn parse(input: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(input) {
        Ok(httparse::Status::Complete(length)) => {
            let (path, query) = request
                .path
                .unwrap_or("/")
                .split_once('?')
                .unwrap_or((request.path.unwrap_or("/"), ""));
            let header = |name: &str| {
                let found = request
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case(name));
                found.map(|header| String::from_utf8_lossy(header.value).to_ascii_lowercase())
            };
            let connection = header("connection").unwrap_or_default();
            let keep_alive = match request.version {
                Some(1) => !connection.contains("close"),
                _ => connection.contains("keep-alive"),
            };
            // Bodies are not read, so nothing can follow one.
            let has_body = header("content-length").is_some_and(|length| length != "0")
                || header("transfer-encoding").is_some();
            let parsed = Request {
                path: path.to_owned(),
                query: query.to_owned(),
                head_only: request.method == Some("HEAD"),
                keep_alive: keep_alive && !has_body,
            };
            Parsed::Request(parsed, length)
        }
        Ok(httparse::Status::Partial) if input.len() >= HEAD_BYTES_MAX => {
            Parsed::Bad(Response::text(431, "431 Request Header Fields Too Large"))
        }
        Ok(httparse::Status::Partial) => Parsed::Incomplete,
        Err(error) => Parsed::Bad(Response::text(400, &format!("400 Bad Request: {error}"))),
    }
}

/// The body of a fuzz target: any bytes are a request, the beginning of one, or refused; a request ends
/// where it says and is one only when it is whole; its parameters are read or refused.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Parsed::Request(request, length) = parse(data) else {
        return;
    };
    let (head, cut) = (&data[..length], length.saturating_sub(1));
    assert!(matches!(parse(&head[..cut]), Parsed::Incomplete));
    let query = super::query::Query(&request.query);
    let _ = (query.connz(), query.switch("subs"), query.get("callback"));
    assert_eq!(parse(head), Parsed::Request(request, length));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_at_any_split() {
        let input = b"GET /varz?a=1 HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\nGET";
        for end in 0..input.len() - 3 {
            assert_eq!(parse(&input[..end]), Parsed::Incomplete, "{end}");
        }
        fuzz(input);
        let request = Request {
            path: "/varz".into(),
            query: "a=1".into(),
            head_only: false,
            keep_alive: false,
        };
        assert_eq!(parse(input), Parsed::Request(request, input.len() - 3));
    }

    #[test]
    fn answers_have_their_date() {
        let date = "Thu, 01 Jan 1970 00:00:00 GMT";
        assert_eq!(
            Response::not_found().head(date, true),
            format!(
                "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 X-Content-Type-Options: nosniff\r\nDate: {date}\r\nContent-Length: 19\r\n\r\n"
            )
        );
    }

    #[test]
    fn every_status_that_is_sent_has_a_reason() {
        for status in [200, 400, 404, 431, 500, 503] {
            let head = Response::text(status, "").head("", true);
            let reason = head.lines().next().unwrap().splitn(3, ' ').nth(2);
            assert!(reason.is_some_and(|reason| !reason.is_empty()), "{head}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(matches!(
            parse(b"\x16\x03\x01 garbage\r\n\r\n"),
            Parsed::Bad(Response { status: 400, .. })
        ));
        let long = [
            b"GET / HTTP/1.1\r\nX: ".to_vec(),
            vec![b'a'; HEAD_BYTES_MAX],
        ]
        .concat();
        assert!(matches!(
            parse(&long),
            Parsed::Bad(Response { status: 431, .. })
        ));
    }
}
