// The review page in a notebook: a frame that holds the page, and hands on what the person says.
function render({ model, el }) {
  const frame = document.createElement('iframe');
  frame.title = 'Review of cells';
  frame.setAttribute('sandbox', 'allow-scripts allow-downloads');
  Object.assign(frame.style, { width: '100%', height: `${model.get('height')}px`, border: '0' });
  const hear = (event) => {
    const isOurs = event.source === frame.contentWindow && event.data && event.data.kind === 'cblc-corrections';
    if (!isOurs) return;
    model.set('corrections', String(event.data.text));
    model.save_changes();
  };
  window.addEventListener('message', hear);
  frame.addEventListener('load', () => {
    const text = model.get('before');
    if (text) frame.contentWindow.postMessage({ kind: 'cblc-take-in', text }, '*');
  });
  frame.srcdoc = model.get('page');
  el.append(frame);
  return () => window.removeEventListener('message', hear);
}

export default { render };
