// Uploads of images: they go on while one looks at other pages, and report how far they are.
import { shallowReactive } from 'vue'
import { create, IMAGES } from '@/api/kinds'
import { csrf, readFailure, root } from '@/api/http'
import { t } from '@/i18n'
import { notify, why } from '@/ui/toast'

export interface Upload { id: string; name: string; done: number; all: number; cancel: () => void }
export const uploads = shallowReactive(new Map<string, Upload>())

/** A name for an object from a file's name. */
export function nameOf(file: string): string {
  const base = file.split(/[\\/]/).pop()!.replace(/\.(qcow2|img|raw|iso|vmdk)$/i, '')
  return base.toLowerCase().replace(/[^a-z0-9-]+/g, '-').replace(/^-+|-+$/g, '').slice(0, 60).replace(/-+$/, '')
}

export const imageObject = (namespace: string, name: string, spec: object): object => ({
  apiVersion: 'harvesterhci.io/v1beta1',
  kind: 'VirtualMachineImage',
  metadata: { name, namespace },
  spec: { displayName: name, ...spec },
})

/** Makes the image's object and sends the file; throws only what the API says of the object. */
export async function upload(namespace: string, name: string, file: File): Promise<void> {
  await create(IMAGES, namespace, imageObject(namespace, name, { sourceType: 'upload' }))
  const id = `${namespace}/${name}`
  // fetch tells nothing of an upload's progress; this older way does.
  const request = new XMLHttpRequest()
  const show = (done: number): void => void uploads.set(id, { id, name, done, all: file.size, cancel: () => request.abort() })
  show(0)
  const form = new FormData()
  form.append('chunk', file, file.name)
  request.upload.onprogress = (event) => show(Math.min(event.loaded, file.size))
  const end = (error?: unknown): void => {
    uploads.delete(id)
    notify(error ? t('image.uploadFailed', { name, why: why(error) }) : t('image.uploaded', { name }), !!error)
  }
  request.onload = () => end(request.status < 300 ? undefined : readFailure(request.status, request.responseText, request.statusText))
  request.onerror = () => end(new Error('the connection broke'))
  request.onabort = () => end(new Error('it was stopped'))
  request.open('POST', new URL(`v1/harvester/harvesterhci.io.virtualmachineimages/${namespace}/${name}?action=upload&size=${file.size}`, root))
  for (const [header, value] of Object.entries(csrf())) request.setRequestHeader(header, value)
  request.send(form)
}
