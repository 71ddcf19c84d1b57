// One input of the Try page: {id, name, label, picture, instance, …}, from a sample, a file or the user's entry.

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
let made = 0;

/** A sample of report.json as an input: {id, name, label, picture, instance}. The user's own inputs also have `own`. */
export const fromSample = (sample, i) => ({
  id: `sample-${i}`,
  name: `Sample ${i + 1}`,
  label: sample.label,
  picture: sample.png && `data:image/png;base64,${sample.png}`,
  instance: sample.instance ?? { b64: sample.png },
  blob: sample.instance === undefined ? new Blob([bytesOf(sample.png)], { type: "image/png" }) : undefined,
  short: sample.instance !== undefined && !sample.png ? String(sample.instance).slice(0, 80) : "",
});

/** An input from an image file. */
export async function fromFile(file) {
  const picture = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
  return { id: `own-${++made}`, own: true, name: file.name || "Pasted image", picture, instance: { b64: picture.split(",")[1] }, blob: file, file: file.name || "image.png" };
}

/** An input that the user wrote or drew on the page. */
export const own = (name, instance, more = {}) => ({ id: `own-${++made}`, own: true, name, instance, short: String(instance).slice(0, 80), ...more });
