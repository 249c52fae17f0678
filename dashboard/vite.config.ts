/// <reference types="vitest/config" />
import { brotliCompressSync, constants } from 'node:zlib'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import vue from '@vitejs/plugin-vue'
import { defineConfig, type Plugin } from 'vite'

// The page is served below any prefix, from any route: the server writes the way up into <base>.
const inDevelopment: Plugin = {
  name: 'sheaf-base',
  apply: 'serve',
  transformIndexHtml: (html) => html.replace('__SHEAF_BASE__', '/dashboard/'),
}

// The server sends what is compressed here as it is.
const compressed: Plugin = {
  name: 'sheaf-brotli',
  apply: 'build',
  closeBundle() {
    const dir = fileURLToPath(new URL('dist/assets', import.meta.url))
    for (const name of readdirSync(dir)) {
      if (!/\.(js|css|svg)$/.test(name)) continue
      const path = join(dir, name)
      writeFileSync(`${path}.br`, brotliCompressSync(readFileSync(path), { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }))
    }
  },
}

export default defineConfig(({ command }) => ({
  base: command === 'build' ? './' : '/dashboard/',
  plugins: [vue(), inDevelopment, compressed],
  resolve: { alias: { '@': fileURLToPath(new URL('src', import.meta.url)) } },
  build: { target: 'es2022', assetsInlineLimit: 0, modulePreload: { polyfill: false }, reportCompressedSize: false },
  server: {
    // `npm run dev` beside a server: SHEAF_URL=https://127.0.0.1:6443 npm run dev
    proxy: Object.fromEntries(
      ['/api', '/apis', '/v1', '/version', '/openapi'].map((path) => [
        path,
        { target: process.env.SHEAF_URL ?? 'https://127.0.0.1:6443', secure: false, ws: true, changeOrigin: false },
      ]),
    ),
  },
  test: { environment: 'jsdom', include: ['test/unit/**/*.test.ts'] },
}))
