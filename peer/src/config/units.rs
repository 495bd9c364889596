//! How single values are written: sizes, durations, booleans, numbers, addresses. Each parser fails with a
//! description of what is allowed, which becomes the end of the message to the user.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::secret::Secret;

/// Bytes of a host name: what the name system allows.
const HOST_BYTES_MAX: usize = 253;

/// Bytes: a plain number, or one with a decimal (`1GB`) or binary (`20GiB`, `50Gi`) unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let allowed = || "expected a size such as 20GiB, 50Gi, 1GB or a number of bytes".to_owned();
    let (number, unit) = split_unit(text).ok_or_else(allowed)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "t" | "tb" => 1000_u64.pow(4),
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return Err(allowed()),
    };
    scale(number, factor).ok_or_else(allowed)
}

/// A size within bounds.
pub(super) fn size_within(text: &str, bounds: &RangeInclusive<u64>) -> Result<u64, String> {
    let bytes = size(text)?;
    if bounds.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("expected a size from {} to {}", show_size(*bounds.start()), show_size(*bounds.end())))
}

/// A duration as Go writes it: `30s`, `5m`, `1h30m`, `250ms`; a plain `0` too.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let allowed = || "expected a duration such as 250ms, 30s, 10m or 1h30m".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ns: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(allowed());
    }
    while !rest.is_empty() {
        let unit_start = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(allowed)?;
        let tail = &rest[unit_start..];
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let factor: u64 = match &tail[..unit_end] {
            "ns" => 1,
            "us" => 1000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(allowed()),
        };
        let part = scale(&rest[..unit_start], factor).ok_or_else(allowed)?;
        total_ns = total_ns.checked_add(part).ok_or_else(allowed)?;
        rest = &tail[unit_end..];
    }
    Ok(Duration::from_nanos(total_ns))
}

/// A duration longer than nothing.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value.is_zero() { Err("expected a duration longer than 0".to_owned()) } else { Ok(value) }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A whole number within bounds.
pub(super) fn number<T>(text: &str, bounds: &RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    let allowed = || format!("expected a whole number from {} to {}", bounds.start(), bounds.end());
    let value: T = text.parse().map_err(|_| allowed())?;
    if bounds.contains(&value) { Ok(value) } else { Err(allowed()) }
}

/// An IP address.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "expected an IP address such as 127.0.0.1, 0.0.0.0 or ::".to_owned())
}

/// An IP address and a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and a port such as 127.0.0.1:65005".to_owned())
}

/// A host, by name or address, and a port: as written.
pub(super) fn host_port(text: &str) -> Result<String, String> {
    let allowed = || "expected a host and a port such as host:65003, 10.0.0.1:65003 or [fd00::1]:65003".to_owned();
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(allowed)?;
    let named = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let valid = named && (1..=HOST_BYTES_MAX).contains(&host.len()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    if valid { Ok(text.to_owned()) } else { Err(allowed()) }
}

/// Any text.
pub(super) fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A key or token: goes into a header, so it has no white space.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err("expected printable ASCII without white space".to_owned());
    }
    Ok(Secret::new(text))
}

/// Bytes for people: in the largest binary unit that divides them, else as they are.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    match fits {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

fn split_unit(text: &str) -> Option<(&str, &str)> {
    let start = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number = text[..start].trim_end();
    (!number.is_empty()).then_some((number, &text[start..]))
}

/// A decimal number times a factor, without floating point: `1.5` times 1024 is 1536.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    if number.contains('.') && fraction.is_empty() {
        return None;
    }
    let mut total = u128::from(whole.parse::<u64>().ok()?) * u128::from(factor);
    if !fraction.is_empty() {
        let power = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        total += fraction.parse::<u128>().ok()? * u128::from(factor) / power;
    }
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("20GiB", 20 << 30),
            ("50Gi", 50 << 30),
            ("50gi", 50 << 30),
            ("1GB", 1_000_000_000),
            ("1G", 1_000_000_000),
            ("1.5KiB", 1536),
            ("64 MiB", 64 << 20),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1X", "1 GiB x", "1.GiB", ".5GiB", "1e3", "0x10", "20000000TiB", "1,5GiB", "٣"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_durations() {
        let good = [("30s", 30_000), ("5m", 300_000), ("10m", 600_000), ("1h", 3_600_000), ("1h30m", 5_400_000)];
        for (text, ms) in
            good.into_iter().chain([("250ms", 250), ("1.5s", 1500), ("0", 0), ("0s", 0), ("1d", 86_400_000)])
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "-1s", "30 s", "1y", "1h-2m", "999999999h", "1mm"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_hosts_with_ports() {
        for text in ["a:1", "seed.example.com:65006", "10.0.0.1:65535", "[::1]:65003", "a_b-c:9"] {
            assert_eq!(host_port(text).as_deref(), Ok(text));
        }
        for text in ["", "a", ":1", "a:", "a:0", "a:65536", "::1", "::1:5", "a b:1", "http://a:1", "a@b:1", "[::1]:0"] {
            assert!(host_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shows_sizes_as_they_may_be_written() {
        for bytes in [0, 1, 1023, 1024, 1536, 1 << 20, 20 << 30, 5 << 40, u64::MAX] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
        assert_eq!(show_size(20 << 30), "20GiB");
    }

    #[test]
    fn secrets_with_white_space_are_refused_without_showing_them() {
        for text in ["canary\n", "can ary", "canär"] {
            let error = secret(text).expect_err(text);
            assert!(!error.contains("can"), "{error}");
        }
    }
}
