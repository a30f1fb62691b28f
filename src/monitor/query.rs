//! Parameters of a request, as the original reads them.

/// The part behind `?`. Of repeated parameters the first one counts.
#[derive(Clone, Copy, Debug)]
pub struct Query<'q>(pub &'q str);

/// What is asked of `/connz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnzOptions {
    pub sort: Sort,
    pub limit: usize,
    pub offset: usize,
    pub subscriptions: bool,
    pub user: bool,
    /// Only this connection.
    pub cid: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Cid,
    Subscriptions,
    Pending,
    MessagesTo,
    MessagesFrom,
    BytesTo,
    BytesFrom,
    Last,
    Idle,
    Uptime,
}

const LIMIT: i64 = 1024;

impl Query<'_> {
    pub fn get(&self, name: &str) -> Option<String> {
        let value = self.0.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })?;
        let spaced = value.replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy();
        Some(decoded.into_owned())
    }

    /// An integer; absent and empty ones are 0. The error is the original's text for status 400.
    fn int(&self, name: &str) -> Result<i64, String> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else {
            return Ok(0);
        };
        text.parse().map_err(|error: std::num::ParseIntError| {
            let why = match error.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            format!("Error decoding {name}: strconv.Atoi: parsing {text:?}: {why}")
        })
    }

    /// A switch, which only 1 turns on.
    pub fn switch(&self, name: &str) -> Result<bool, String> {
        Ok(self.int(name)? == 1)
    }

    pub fn connz(&self) -> Result<ConnzOptions, String> {
        let user = self.switch("auth")?;
        let subscriptions = self.switch("subs")?;
        let offset = usize::try_from(self.int("offset")?).unwrap_or(0);
        let limit = self.int("limit")?;
        let limit = if limit <= 0 { LIMIT } else { limit } as usize;
        let cid = u64::try_from(self.int("cid")?).ok().filter(|cid| *cid > 0);
        Ok(ConnzOptions {
            sort: self.sort()?,
            limit,
            offset,
            subscriptions,
            user,
            cid,
        })
    }

    fn sort(&self) -> Result<Sort, String> {
        Ok(match self.get("sort").as_deref().unwrap_or("") {
            "" | "cid" => Sort::Cid,
            "subs" => Sort::Subscriptions,
            "pending" => Sort::Pending,
            "msgs_to" => Sort::MessagesTo,
            "msgs_from" => Sort::MessagesFrom,
            "bytes_to" => Sort::BytesTo,
            "bytes_from" => Sort::BytesFrom,
            "last" => Sort::Last,
            "idle" => Sort::Idle,
            "uptime" => Sort::Uptime,
            other => return Err(format!("Invalid sorting option: {other}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query("a=1&callback=x%2By+z&a=2&subs");
        assert_eq!(query.get("a").as_deref(), Some("1"));
        assert_eq!(query.get("callback").as_deref(), Some("x+y z"));
        assert_eq!(query.get("call"), None);
        assert_eq!(query.switch("subs"), Ok(false));
    }

    #[test]
    fn connz_options() {
        let options = Query("sort=idle&limit=-1&offset=-5&subs=1&auth=2")
            .connz()
            .unwrap();
        assert_eq!(
            options,
            ConnzOptions {
                sort: Sort::Idle,
                limit: 1024,
                offset: 0,
                subscriptions: true,
                user: false,
                cid: None
            }
        );
        assert_eq!(
            Query("limit=abc").connz().unwrap_err(),
            "Error decoding limit: strconv.Atoi: parsing \"abc\": invalid syntax"
        );
        assert_eq!(
            Query("sort=zzz").connz().unwrap_err(),
            "Invalid sorting option: zzz"
        );
        assert!(Query("subs=true").connz().is_err());
    }
}
