//! Puts a text before the `</body>` of a page that streams by. Pure, and the body
//! around it.
//!
//! The last `</body>` counts: an earlier one is in a script or a comment. What
//! follows one is held until the page ends, up to a bound; more than that follows
//! no real one. Nothing else is held but the beginnings of a tag.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};

/// How the end of a body begins; a `>`, a space or a slash follows.
const END: &[u8] = b"</body";

/// What may follow the real end: `</html>`, comments, a profiler's output.
const AFTER_END_MAX: usize = 64 << 10;

/// A page on its way.
#[derive(Debug)]
struct Splice {
    insert: Bytes,
    /// Not yet passed on; begins with the last end found, if there was one.
    held: BytesMut,
    at_end: bool,
}

impl Splice {
    /// Takes a piece of the page and answers what may be passed on.
    fn push(&mut self, piece: &[u8]) -> Bytes {
        // An end may have begun in what is held.
        let from = self.held.len().saturating_sub(END.len()).max(usize::from(self.at_end));
        self.held.extend_from_slice(piece);
        if let Some(at) = last_end(&self.held[from..]) {
            self.at_end = true;
            return self.held.split_to(from + at).freeze();
        }
        if self.at_end {
            if self.held.len() <= AFTER_END_MAX {
                return Bytes::new();
            }
            self.at_end = false;
        }
        let passed = self.held.len() - begun(&self.held);
        self.held.split_to(passed).freeze()
    }

    /// The rest of the page.
    fn finish(&mut self) -> Bytes {
        let held = self.held.split();
        if !self.at_end {
            return held.freeze();
        }
        let mut rest = BytesMut::with_capacity(self.insert.len() + held.len());
        rest.extend_from_slice(&self.insert);
        rest.extend_from_slice(&held);
        rest.freeze()
    }
}

/// Where the last whole end begins.
fn last_end(text: &[u8]) -> Option<usize> {
    let is_end = |window: &[u8]| {
        let (tag, after) = window.split_at(END.len());
        tag.eq_ignore_ascii_case(END) && matches!(after, [b'>' | b'/' | b' ' | b'\t' | b'\n' | b'\r' | 0x0c])
    };
    text.windows(END.len() + 1).rposition(is_end)
}

/// How many of the last bytes may be the beginning of an end.
fn begun(text: &[u8]) -> usize {
    let longest = END.len().min(text.len());
    let begins = |length: &usize| text[text.len() - length..].eq_ignore_ascii_case(&END[..*length]);
    (1..=longest).rev().find(begins).unwrap_or(0)
}

/// The page as a body.
#[derive(Debug)]
struct Spliced {
    page: Body,
    splice: Splice,
    ended: bool,
}

/// The page with `insert` before its end; without an end it stays as it is.
pub(crate) fn spliced(page: Body, insert: String) -> Body {
    let splice = Splice { insert: insert.into(), held: BytesMut::new(), at_end: false };
    Body::new(Spliced { page, splice, ended: false })
}

impl HttpBody for Spliced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while !self.ended {
            let passed = match ready!(Pin::new(&mut self.page).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => self.splice.push(&piece),
                    // Trailers: of a body that is no longer the same.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.ended = true;
                    self.splice.finish()
                }
            };
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: &str = "<banner>";

    fn through(pieces: &[&[u8]]) -> Vec<u8> {
        let mut splice = Splice { insert: MARK.into(), held: BytesMut::new(), at_end: false };
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&splice.push(piece));
        }
        out.extend_from_slice(&splice.finish());
        out
    }

    fn page(text: &str) -> String {
        String::from_utf8(through(&[text.as_bytes()])).unwrap()
    }

    #[test]
    fn the_text_stands_before_the_last_end() {
        assert_eq!(page("<p>a</p></body></html>"), "<p>a</p><banner></body></html>");
        assert_eq!(page("<p>a</p></BODY\n></html>"), "<p>a</p><banner></BODY\n></html>");
        let script = "<script>w('</body>')</script><p>b</p></body></html>";
        assert_eq!(page(script), "<script>w('</body>')</script><p>b</p><banner></body></html>");
        for without in ["", "<p>a</p>", "</bodywork>", "</body", "<body>", "{\"a\": 1}"] {
            assert_eq!(page(without), without);
        }
    }

    #[test]
    fn what_is_far_from_the_pages_end_is_no_end() {
        let far = format!("<script>w('</body>')</script>{}", "x".repeat(AFTER_END_MAX + 1));
        let mut splice = Splice { insert: MARK.into(), held: BytesMut::new(), at_end: false };
        let mut passed = 0;
        for piece in far.as_bytes().chunks(1000) {
            passed += splice.push(piece).len();
            assert!(splice.held.len() <= AFTER_END_MAX + 1000, "the buffer is bounded");
        }
        assert_eq!((passed, splice.finish().len()), (far.len(), 0), "and nothing is lost or added");
        assert!(through(&[far.as_bytes(), b"</body>"]).ends_with(b"x<banner></body>"));
    }

    #[test]
    fn nothing_is_held_that_is_no_beginning_of_an_end() {
        let mut splice = Splice { insert: MARK.into(), held: BytesMut::new(), at_end: false };
        assert_eq!(&splice.push(b"<p>a</p>")[..], b"<p>a</p>");
        assert_eq!(&splice.push(b"b</b")[..], b"b");
        assert_eq!(&splice.push(b"r>")[..], b"</br>");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_page_is_cut(
            parts in proptest::collection::vec(
                prop_oneof![Just("</body>"), Just("</BoDy "), Just("</bod"), Just("<"), Just("y>"), Just("text")],
                0..12),
            cuts in proptest::collection::vec(1..9_usize, 0..40)
        ) {
            let page = parts.concat().into_bytes();
            let whole = through(&[&page]);
            let (mut rest, mut pieces) = (&page[..], Vec::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(&through(&pieces), &whole);
            let without = String::from_utf8(whole).unwrap().replacen(MARK, "", 1);
            prop_assert_eq!(without.as_bytes(), &page[..]);
        }
    }
}
