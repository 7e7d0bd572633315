// The import directions of docs/architecture.md, "The source folders". Run by `npm run lint`.
const rule = (name, comment, from, to) => ({name, severity: 'error', comment, from, to});
const adapters = [
	'api',
	'journal',
	'podvm',
	'network',
	'relay',
	'relay-process',
	'kubernetes',
	'image',
	'health',
	'status',
	'webhook',
	'metrics',
];
/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
	forbidden: [
		rule('no-cycles', 'A cycle shows that two folders are really one.', {}, {circular: true}),
		rule(
			'no-orphans',
			'Nobody imports it: it is dead.',
			{orphan: true, path: '^src/', pathNot: '^src/main[.]ts$'},
			{},
		),
		rule('foundation', 'core/ stands on nothing of ours.', {path: '^src/core/'}, {path: '^src/(?!core/)'}),
		rule(
			'images-are-judged-without-storage',
			'vm-image/ knows names and bytes: neither libvirt nor registries.',
			{path: '^src/vm-image/'},
			{path: '^src/(?!vm-image/|core/)'},
		),
		rule(
			'domain-knows-no-protocol',
			'sandbox/ imports core/ only, and no library.',
			{path: '^src/sandbox/'},
			{pathNot: ['^src/(sandbox|core)/'], dependencyTypesNot: ['core']},
		),
		rule(
			'check-knows-no-protocol',
			'check/ judges what others have seen.',
			{path: '^src/check/'},
			{pathNot: ['^src/(check/|core/)', '^node:']},
		),
		rule(
			'probes-see-and-do-not-judge',
			'Adapters know the observations only.',
			{path: `^src/(${adapters.join('|')})/`},
			{path: '^src/check/', pathNot: '^src/check/observations[.]ts$'},
		),
		...adapters.map(name =>
			rule(
				`${name}-is-an-adapter`,
				'Adapters never import each other, nor what composes them.',
				{path: `^src/${name}/`},
				{
					path: `^src/(?!(${name}|core|sandbox|check${['api', 'relay-process', 'status'].includes(name) ? '|ttrpc' : ''}${name === 'relay-process' ? '|relay/(agent-socket|events|vm-connector)[.]ts' : ''}${name === 'podvm' || name === 'image' ? '|libvirt|vm-image' : ''}${name === 'relay' ? '|ttrpc/(frame|message|paced-reader|status|violations)[.]ts' : ''}))`,
				},
			),
		),
		...['ttrpc', 'libvirt'].map(name =>
			rule(
				`${name}-is-a-package`,
				'Fit to be a package of its own: knows nothing of pods.',
				{path: `^src/${name}/`},
				{path: `^src/(?!${name}/|core/(?!log[.]ts$))`},
			),
		),
		rule(
			'libvirt-wire-does-no-io',
			'Bytes, numbers and errors of the protocol: no sockets, no session.',
			{path: '^src/libvirt/wire/'},
			{path: '^src/libvirt/(?!wire/)'},
		),
		rule(
			'libvirt-transports-carry-bytes',
			'How bytes travel, not what they say.',
			{path: '^src/libvirt/transport/'},
			{path: '^src/libvirt/(?!transport/|(uri|glob)[.]ts$)'},
		),
		rule(
			'observers-know-events',
			'Observers turn events into lines and Kubernetes events: from other folders they import only the events.',
			{path: '^src/observers/'},
			{
				path: '^src/(?!observers/|core/|(api|network|podvm|relay|relay-process|sandbox|webhook)/events[.]ts$|sandbox/ports[.]ts$|libvirt/session-events[.]ts$|metrics/registry[.]ts$)',
			},
		),
		rule(
			'only-main-is-the-edge',
			'main -> cli -> daemon.',
			{path: '^src/(?!main[.]ts$)'},
			{path: '^src/main[.]ts$'},
		),
		rule(
			'images-are-for-their-commands',
			'The daemon loads none of it: it would cost its memory.',
			{path: '^src/', pathNot: '^src/(image/|cli/image[.]ts$)'},
			{path: '^src/image/'},
		),
		rule('cli-is-for-main', 'main -> cli -> daemon.', {path: '^src/(?!main[.]ts$|cli/)'}, {path: '^src/cli/'}),
		...[
			['ssh2', '^src/libvirt/transport/'],
			['@grpc/', '^src/(api|relay-process|status)/'],
			['xmlbuilder2', '^src/podvm/|^src/libvirt/(xml[.]ts$|storage/)'],
			['pino', '^src/core/log[.]ts$'],
			['yaml', '^src/podvm/'],
			['smol-toml', '^src/initdata/'],
			['protobufjs', '^src/ttrpc/'],
			['prom-client', '^src/metrics/'],
		].map(([library, home]) =>
			rule(
				`${library.replace(/\W/g, '')}-lives-in-one-place`,
				'One third-party library lives in one place.',
				{path: '^src/', pathNot: home},
				{path: `node_modules/${library}`},
			),
		),
	],
	options: {
		tsPreCompilationDeps: true,
		tsConfig: {fileName: 'tsconfig.json'},
		doNotFollow: {path: 'node_modules'},
		enhancedResolveOptions: {exportsFields: ['exports'], conditionNames: ['import', 'node', 'default', 'types']},
	},
};
