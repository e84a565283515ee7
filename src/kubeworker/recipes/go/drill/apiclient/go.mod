module kubeworker.invalid/apiclient

go 1.24
