// Thousands of machines in the dashboard: first load, list, filter, sort, scrolling, and the tab's memory under updates.
// Environment: that of harness.mjs; SHEAF_MACHINES (5000), SHEAF_UPDATES (18000: an hour at five a second).
import { Browser, url } from './harness.mjs'

const MACHINES = Number(process.env.SHEAF_MACHINES ?? 5000)
const UPDATES = Number(process.env.SHEAF_UPDATES ?? 18_000)
/** Requests that a page has under way. */
const TOGETHER = 16
/** What the figures have to keep to; a machine that is busy otherwise gets a longer frame. */
const LIMITS = { bytes: 300 * 1024, heapGrowth: 1.5 }

const b = await Browser.open()
const { page } = b
const row = (name, value) => console.log(`  ${name.padEnd(46)}${value}`)

/** Sends many requests from the page. */
const many = (count, make) => page.evaluate(async ([count, TOGETHER, source]) => {
  const make = new Function('n', `return (${source})(n)`)
  const csrf = document.cookie.split('; ').find((c) => c.startsWith('sheaf_csrf='))?.slice(11) ?? ''
  let next = 0
  let failed = ''
  const worker = async () => {
    while (next < count && !failed) {
      const { method, path, body, type } = make(next++)
      const answer = await fetch(path, { method, headers: { 'Content-Type': type ?? 'application/json', 'X-Sheaf-CSRF': csrf }, body: JSON.stringify(body) })
      if (!answer.ok && answer.status !== 409) failed = await answer.text()
    }
  }
  await Promise.all(Array.from({ length: TOGETHER }, worker))
  return failed
}, [count, TOGETHER, make.toString()])

const machine = (n) => {
  const name = `m-${String(n).padStart(5, '0')}`
  const labels = { app: `app-${n % 40}`, tier: ['web', 'db', 'cache'][n % 3] }
  const spec = { runStrategy: 'Halted', template: { spec: { domain: { cpu: { cores: 1 + (n % 8) }, memory: { guest: '1Gi' }, devices: { interfaces: [{ name: 'default', masquerade: {} }] } }, networks: [{ name: 'default', pod: {} }] } } }
  return { method: 'POST', path: '/apis/kubevirt.io/v1/namespaces/default/virtualmachines', body: { apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachine', metadata: { name, labels }, spec } }
}
const touch = (n) => ({ method: 'PATCH', type: 'application/merge-patch+json', path: `/apis/kubevirt.io/v1/namespaces/default/virtualmachines/m-${String((n * 7919) % 5000).padStart(5, '0')}`, body: { metadata: { annotations: { touched: String(n) } } } })

/** Frames while something is done: how long each took. */
async function frames(work) {
  await page.evaluate(() => {
    window.frames_ = []
    let last = performance.now()
    const tick = (now) => {
      window.frames_.push(now - last)
      last = now
      window.ticking_ = requestAnimationFrame(tick)
    }
    window.ticking_ = requestAnimationFrame(tick)
  })
  await work()
  const all = await page.evaluate(() => (cancelAnimationFrame(window.ticking_), window.frames_.slice(2)))
  all.sort((a, c) => a - c)
  const at = (part) => all[Math.min(all.length - 1, Math.floor(all.length * part))] ?? 0
  const mean = all.reduce((n, f) => n + f, 0) / Math.max(1, all.length)
  return { count: all.length, text: `${(1000 / mean).toFixed(0)} frames/s; median ${at(0.5).toFixed(1)} ms, 95 % ${at(0.95).toFixed(1)} ms, worst ${at(1).toFixed(0)} ms` }
}
const cdp = await b.context.newCDPSession(page)
await cdp.send('HeapProfiler.enable')
async function heap() {
  for (let n = 0; n < 3; n++) await cdp.send('HeapProfiler.collectGarbage')
  return (await cdp.send('Runtime.getHeapUsage')).usedSize
}
const MB = (n) => `${(n / 2 ** 20).toFixed(1)} MB`

let failure
try {
  await b.signIn()
  const bytes = await b.weight()
  row('first load, compressed', `${Math.round(bytes / 1024)} KB`)
  if (bytes > LIMITS.bytes) b.wrong.push(`the first load takes ${bytes} bytes`)
  // Once more, without the cache: until the page can be used.
  const fresh = await b.context.newPage()
  const nocache = await b.context.newCDPSession(fresh)
  await nocache.send('Network.setCacheDisabled', { cacheDisabled: true })
  const begun = Date.now()
  await fresh.goto(`${url}/dashboard/`)
  await fresh.getByRole('heading', { name: 'Overview' }).waitFor()
  row('first load, until the overview is there', `${Date.now() - begun} ms`)
  await fresh.close()

  const made = Date.now()
  const failed = await many(MACHINES, machine)
  if (failed) throw new Error(failed)
  row(`${MACHINES} machines made through the API`, `${((Date.now() - made) / 1000).toFixed(1)} s`)

  const listed = Date.now()
  await page.goto(`${url}/dashboard/vms`)
  await page.locator('tbody tr').first().waitFor()
  await page.waitForFunction((n) => document.querySelector('h1 .count')?.textContent === String(n), MACHINES)
  row('list opened, all machines there', `${Date.now() - listed} ms`)
  row('rows in the document', await page.locator('tbody tr').count())
  row('heap of the tab with the list', MB(await heap()))

  const box = page.locator('.box.windowed')
  await box.hover()
  const scrolling = await frames(async () => {
    for (let n = 0; n < 240; n++) await page.mouse.wheel(0, 160)
  })
  row('scrolling', scrolling.text)
  const jumping = await frames(() => page.evaluate(async () => {
    const box = document.querySelector('.box.windowed')
    for (let n = 0; n < 120; n++) {
      box.scrollTop = ((n * 37) % 120) / 120 * box.scrollHeight
      await new Promise(requestAnimationFrame)
    }
  }))
  row('jumping about', jumping.text)

  const typed = await page.evaluate(async () => {
    const input = document.querySelector('[data-filter]')
    const took = []
    for (const text of ['a', 'ap', 'app', 'app-', 'app-3', 'app-3 d', 'app-3 db', '']) {
      const at = performance.now()
      input.value = text
      input.dispatchEvent(new Event('input', { bubbles: true }))
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
      took.push(performance.now() - at)
    }
    return Math.max(...took)
  })
  row('filter, a letter until it is drawn, at most', `${typed.toFixed(0)} ms`)
  const sorted = await page.evaluate(async () => {
    const at = performance.now()
    document.querySelectorAll('th button')[1].click()
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
    return performance.now() - at
  })
  row('sort by another column until it is drawn', `${sorted.toFixed(0)} ms`)

  const before = await heap()
  const other = await b.context.newPage()
  await other.goto(`${url}/dashboard/settings`)
  const updating = Date.now()
  const alive = page
  const shown = await frames(async () => {
    b.page = other
    const bad = await other.evaluate(async ([count, TOGETHER, source]) => {
      const make = new Function('n', `return (${source})(n)`)
      const csrf = document.cookie.split('; ').find((c) => c.startsWith('sheaf_csrf='))?.slice(11) ?? ''
      let next = 0
      const worker = async () => {
        while (next < count) {
          const { method, path, body, type } = make(next++)
          await fetch(path, { method, headers: { 'Content-Type': type, 'X-Sheaf-CSRF': csrf }, body: JSON.stringify(body) })
        }
      }
      await Promise.all(Array.from({ length: TOGETHER }, worker))
    }, [UPDATES, 4, touch.toString()])
    b.page = alive
    return bad
  })
  const took = (Date.now() - updating) / 1000
  const after = await heap()
  row(`${UPDATES} updates (${Math.round(UPDATES / took)}/s): the list meanwhile`, shown.text)
  row('heap before and after', `${MB(before)}, ${MB(after)}`)
  if (after > before * LIMITS.heapGrowth + (8 << 20)) b.wrong.push(`the tab's heap grew from ${MB(before)} to ${MB(after)}`)
} catch (error) {
  failure = error
}
await b.close(failure)
