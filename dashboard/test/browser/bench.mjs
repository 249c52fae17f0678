// Thousands of machines in the dashboard: first load, list, filter, sort, scrolling, and the tab's memory under updates.
// Environment: that of harness.mjs; SHEAF_MACHINES (5000), SHEAF_UPDATES (18000: an hour at five a second), SHEAF_STRICT=1 (times count,
// too: for a machine that does nothing else).
import { Browser, url } from './harness.mjs'

const MACHINES = Number(process.env.SHEAF_MACHINES ?? 5000)
const UPDATES = Number(process.env.SHEAF_UPDATES ?? 18_000)
/** Requests that a page has under way. */
const TOGETHER = 16
/** What the figures have to keep to. Times (in ms; frames in a second) only where nothing else runs. */
const LIMITS = { bytes: 300 * 1024, heapGrowth: 1.5, load: 1000, frames: 55, late: 0.05 }
const STRICT = process.env.SHEAF_STRICT === '1'
/** A frame that took longer than this was late: the one before it was seen twice. */
const LATE_MS = 25

const b = await Browser.open()
const { page } = b
const row = (name, value) => console.log(`  ${name.padEnd(46)}${value}`)

const machine = (n) => {
  const name = `m-${String(n).padStart(5, '0')}`
  const labels = { app: `app-${n % 40}`, tier: ['web', 'db', 'cache'][n % 3] }
  const spec = { runStrategy: 'Halted', template: { spec: { domain: { cpu: { cores: 1 + (n % 8) }, memory: { guest: '1Gi' }, devices: { interfaces: [{ name: 'default', masquerade: {} }] } }, networks: [{ name: 'default', pod: {} }] } } }
  return { method: 'POST', path: '/apis/kubevirt.io/v1/namespaces/default/virtualmachines', body: { apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachine', metadata: { name, labels }, spec } }
}
const touch = (n) => ({ method: 'PATCH', type: 'application/merge-patch+json', path: `/apis/kubevirt.io/v1/namespaces/default/virtualmachines/m-${String((n * 7919) % MACHINES_).padStart(5, '0')}`, body: { metadata: { annotations: { touched: String(n) } } } })

/** Sends many requests from a page, some at a time. What failed, if anything did. */
const many = (on, count, together, make) => on.evaluate(async ([count, together, machines, source]) => {
  const make = new Function('n', 'MACHINES_', `return (${source})(n)`)
  const csrf = document.cookie.split('; ').find((c) => c.startsWith('sheaf_csrf='))?.slice(11) ?? ''
  let next = 0
  let failed = ''
  const worker = async () => {
    while (next < count && !failed) {
      const { method, path, body, type } = make(next++, machines)
      const answer = await fetch(path, { method, headers: { 'Content-Type': type ?? 'application/json', 'X-Sheaf-CSRF': csrf }, body: JSON.stringify(body) })
      const text = await answer.text()
      // Machines of an earlier run are as good.
      if (!answer.ok && !(method === 'POST' && answer.status === 409)) failed = `${answer.status}: ${text}`
    }
  }
  await Promise.all(Array.from({ length: together }, worker))
  return failed
}, [count, together, MACHINES, make.toString()])

/** Says a time that has a limit. */
function timed(name, value, unit, bad) {
  row(name, `${value} ${unit}${bad ? '   (beyond the limit)' : ''}`)
  if (bad && STRICT) b.wrong.push(`${name}: ${value} ${unit}`)
}

/** Frames while something is done, as the page's own thread gets to them: how long each took. */
async function frames(work, page = b.page) {
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
  const late = all.filter((f) => f > LATE_MS).length / Math.max(1, all.length)
  const text = `${(1000 / mean).toFixed(0)} frames/s of ${all.length}; median ${at(0.5).toFixed(1)} ms, 95 % ${at(0.95).toFixed(1)} ms, worst ${at(1).toFixed(0)} ms; ${(late * 100).toFixed(1)} % late`
  return { text, bad: 1000 / mean < LIMITS.frames || late > LIMITS.late }
}
/** Says how frames came, which has a limit. */
function drawn(name, { text, bad }) {
  timed(name, text, '', bad)
}
/** What this machine can do at all: as many cells as the list shows are drawn anew in each frame, by no script and laid out once. */
async function unscripted() {
  const still = await b.context.newPage()
  const cells = '<td>machine</td>'.repeat(10)
  await still.emulateMedia({ reducedMotion: 'no-preference' })
  await still.setContent(`<style>table { width: 1100px; animation: tint 3s steps(180) infinite; } td { height: 40px; } @keyframes tint { to { color: red; } }</style><table>${`<tr>${cells}</tr>`.repeat(17)}</table>`)
  const seen = await frames(() => still.waitForTimeout(3000), still)
  await still.close()
  await page.bringToFront()
  return seen
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
  const load = Date.now() - begun
  timed('first load, until the overview is there', load, 'ms', load > LIMITS.load)
  await fresh.close()

  const made = Date.now()
  const failed = await many(page, MACHINES, TOGETHER, machine)
  if (failed) throw new Error(failed)
  row(`${MACHINES} machines made through the API`, `${((Date.now() - made) / 1000).toFixed(1)} s`)

  const listed = Date.now()
  await page.goto(`${url}/dashboard/vms`)
  await page.locator('tbody tr').first().waitFor()
  await page.waitForFunction((n) => document.querySelector('h1 .count')?.textContent === String(n), MACHINES)
  row('list opened, all machines there', `${Date.now() - listed} ms`)
  row('rows in the document', await page.locator('tbody tr').count())
  row('heap of the tab with the list', MB(await heap()))

  row('as many cells in a page without script', (await unscripted()).text)
  const box = page.locator('.box.windowed')
  await box.hover()
  const scrolling = await frames(async () => {
    for (let n = 0; n < 240; n++) await page.mouse.wheel(0, 160)
  })
  drawn('scrolling', scrolling)
  const jumping = await frames(() => page.evaluate(async () => {
    const box = document.querySelector('.box.windowed')
    for (let n = 0; n < 120; n++) {
      box.scrollTop = ((n * 37) % 120) / 120 * box.scrollHeight
      await new Promise(requestAnimationFrame)
    }
  }))
  drawn('jumping about', jumping)

  // Letters as fast as frames come; the list becomes others of the same length, or a short one.
  for (const [name, texts] of [['filtering', ['a', 'ap', 'app', 'app-', 'app-3', 'app-3 d', 'app-3 db', '']], ['filtering by a name', ['m', 'm-', 'm-0', 'm-00', 'm-004', 'm-0042', 'm-004', '']]]) {
    let typed = 0
    const typing = await frames(async () => {
      typed = await page.evaluate(async (texts) => {
        const input = document.querySelector('[data-filter]')
        const took = []
        for (const text of texts) {
          const at = performance.now()
          input.value = text
          input.dispatchEvent(new Event('input', { bubbles: true }))
          await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
          took.push(performance.now() - at)
        }
        return Math.max(...took)
      }, texts)
    })
    drawn(name, typing)
    row(`${name}: a letter until drawn, at most`, `${typed.toFixed(0)} ms`)
  }
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
  // Only the page in front draws.
  await page.bringToFront()
  const updating = Date.now()
  let refusedUpdate = ''
  const shown = await frames(async () => {
    refusedUpdate = await many(other, UPDATES, 4, touch)
  })
  if (refusedUpdate) throw new Error(`an update was refused: ${refusedUpdate}`)
  const took = (Date.now() - updating) / 1000
  const after = await heap()
  drawn(`${UPDATES} updates (${Math.round(UPDATES / took)}/s): the list meanwhile`, shown)
  const seen = await page.evaluate(() => document.querySelector('h1 .count')?.textContent)
  if (seen !== String(MACHINES)) b.wrong.push(`after the updates the list has ${seen} machines`)
  row('heap before and after', `${MB(before)}, ${MB(after)}`)
  if (after > before * LIMITS.heapGrowth + (8 << 20)) b.wrong.push(`the tab's heap grew from ${MB(before)} to ${MB(after)}`)
} catch (error) {
  failure = error
}
await b.close(failure)
