// Lint is for what the compiler cannot see: floating promises, host-endian views over bytes, strays into `process`.
import {defineConfig} from 'eslint/config';
import tseslint from 'typescript-eslint';

const multiByteViews = [
	'Uint16Array',
	'Int16Array',
	'Uint32Array',
	'Int32Array',
	'BigUint64Array',
	'BigInt64Array',
	'Float32Array',
	'Float64Array',
];

export default defineConfig(
	{
		ignores: [
			'dist/',
			'node_modules/',
			'.cache/',
			'eslint.config.js',
			'ava.config.js',
			'test/suites.js',
			'.dependency-cruiser.cjs',
		],
	},
	tseslint.configs.strictTypeChecked,
	{
		languageOptions: {parserOptions: {projectService: true}},
		rules: {
			'@typescript-eslint/no-floating-promises': 'error',
			'@typescript-eslint/restrict-template-expressions': ['error', {allowNumber: true, allowBoolean: true}],
			'@typescript-eslint/no-confusing-void-expression': ['error', {ignoreArrowShorthand: true}],
			'@typescript-eslint/no-unused-vars': [
				'error',
				{argsIgnorePattern: '^_', varsIgnorePattern: '^_', caughtErrorsIgnorePattern: '^_'},
			],
			// `await using undo = …` holds a resource by existing.
			'@typescript-eslint/require-await': 'off',
			'@typescript-eslint/switch-exhaustiveness-check': 'error',
			eqeqeq: 'error',
			// The formatter breaks code, not comments. Texts may be longer: a message that is split cannot be searched for.
			'max-len': [
				'error',
				{
					code: 120,
					tabWidth: 4,
					ignoreStrings: true,
					ignoreTemplateLiterals: true,
					ignoreRegExpLiterals: true,
					ignoreUrls: true,
				},
			],
			// s390x is big-endian, developers' machines are not: no test on x86 can tell a host-endian view is wrong.
			'no-restricted-globals': [
				'error',
				...multiByteViews.map(name => ({name, message: 'Host-endian: use DataView or Buffer.read…BE.'})),
			],
		},
	},
	{
		files: ['src/**'],
		ignores: ['src/main.ts'],
		rules: {
			'no-restricted-syntax': [
				'error',
				{
					selector: 'Identifier[name="process"]:not(MemberExpression > .property)',
					message: 'Only main.ts names `process`: take it as an argument.',
				},
			],
			'no-console': 'error',
		},
	},
	{
		files: ['test/**'],
		rules: {
			'no-restricted-syntax': [
				'error',
				{
					selector:
						':matches(CallExpression[callee.name="test"], CallExpression[callee.object.name="test"]) > :matches(Literal[value=/^.{101}/], TemplateLiteral:has(TemplateElement[value.raw=/^.{101}/])):first-child',
					message: 'A test title has at most 100 characters.',
				},
			],
		},
	},
);
