//! Which backend is used, as all threads see it: set by whoever learns of one, carried out by the sidecar.
//!
//! It only ever goes from none to one to another, so that who has seen one may rely on there being one.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::BackendOptions;

/// The options in force. Clones share them.
#[derive(Clone)]
pub(in crate::sidecar) struct Configured(Arc<watch::Sender<Option<Arc<BackendOptions>>>>);

impl Configured {
    pub(in crate::sidecar) fn new(options: Option<BackendOptions>) -> Configured {
        Configured(Arc::new(watch::Sender::new(options.map(Arc::new))))
    }

    /// Tells whether they are others than before.
    pub(in crate::sidecar) fn set(&self, options: BackendOptions) -> bool {
        self.0.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&options);
            if changed {
                *current = Some(Arc::new(options));
            }
            changed
        })
    }

    pub(in crate::sidecar) fn options(&self) -> Option<Arc<BackendOptions>> {
        self.0.borrow().clone()
    }

    pub(in crate::sidecar) fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Sees every change from now on, and the present options as the first.
    pub(in crate::sidecar) fn changes(&self) -> watch::Receiver<Option<Arc<BackendOptions>>> {
        let mut changes = self.0.subscribe();
        changes.mark_changed();
        changes
    }
}
