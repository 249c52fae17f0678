// Every state of a page has an address. Pages other than the list are loaded when they are opened.
import { createRouter, createWebHistory } from 'vue-router'
import type { RouteRecordRaw } from 'vue-router'
import { session } from '@/api/session'
import type { Key } from '@/i18n'

/** A page of simple kinds. */
const kinds = (name: string, path: string, entries: string[], title: Key): RouteRecordRaw => ({
  path: `${path}/:tab?`, name, component: () => import('@/pages/Kinds.vue'), props: (to) => ({ entries, title, tab: to.params.tab }),
})

export const router = createRouter({
  history: createWebHistory(new URL(document.baseURI).pathname),
  routes: [
    { path: '/', name: 'overview', component: () => import('@/pages/Overview.vue') },
    { path: '/login', name: 'login', component: () => import('@/pages/Login.vue'), meta: { open: true } },
    { path: '/vms', name: 'vms', component: () => import('@/pages/Machines.vue') },
    { path: '/vms/create', name: 'vm-create', component: () => import('@/pages/MachineForm.vue') },
    { path: '/vms/:namespace/:name/edit', name: 'vm-edit', component: () => import('@/pages/MachineForm.vue'), props: true },
    { path: '/vms/:namespace/:name/:tab?', name: 'vm', component: () => import('@/pages/Machine.vue'), props: true },
    { path: '/images', name: 'images', component: () => import('@/pages/Images.vue') },
    { path: '/volumes', name: 'volumes', component: () => import('@/pages/Volumes.vue') },
    { path: '/nodes', name: 'nodes', component: () => import('@/pages/Nodes.vue') },
    { path: '/nodes/:name/:tab?', name: 'node', component: () => import('@/pages/NodePage.vue'), props: true },
    kinds('types', '/types', ['clustertypes', 'types', 'clusterpreferences', 'preferences'], 'nav.types'),
    kinds('snapshots', '/snapshots', ['snapshots', 'classes'], 'nav.snapshots'),
    kinds('migrations', '/migrations', ['migrations'], 'nav.migrations'),
    kinds('networks', '/networks', ['networks'], 'nav.networks'),
    kinds('keys', '/keys', ['keys'], 'nav.keys'),
    kinds('namespaces', '/namespaces', ['namespaces', 'quotas', 'limits'], 'nav.namespaces'),
    { path: '/access/:tab?', name: 'access', component: () => import('@/pages/Access.vue'), props: true },
    { path: '/events', name: 'events', component: () => import('@/pages/Events.vue') },
    { path: '/settings', name: 'settings', component: () => import('@/pages/Settings.vue') },
    { path: '/objects', name: 'explorer', component: () => import('@/pages/Explorer.vue') },
    { path: '/objects/:place/:plural/:namespace/:name', name: 'object', component: () => import('@/pages/ObjectPage.vue'), props: true },
    { path: '/:rest(.*)*', name: 'lost', component: () => import('@/pages/Lost.vue') },
  ],
})

router.beforeEach((to) => {
  if (!session.user && !to.meta.open) return { name: 'login', query: to.fullPath === '/' ? {} : { to: to.fullPath } }
  if (session.user && to.name === 'login') return String(to.query.to ?? '/')
})
